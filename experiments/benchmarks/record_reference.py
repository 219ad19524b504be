"""Records the outputs of reference PyTorch models for the parity tests in tests/pretrained.

    PYTHONPATH=. python experiments/benchmarks/record_reference.py tests/fixtures [NAME ...]

Needs torch, torchvision and segmentation-models-pytorch (the extra "benchmarks"); Mask R-CNN needs
torchvision's compiled operators. The records of Mask R-CNN, MobileNetV3 and SMP's DeepLabV3Plus on
MobileNetV2 come from torch 2.14.1 and torchvision 0.29.1, the others from torch 2.13 and
torchvision 0.28; segmentation-models-pytorch is 0.6.

Each record is one `NAME.npz` with inputs, outputs and "shapes", {name: shape} of the state dict.
The weights are those of `tests/fixtures/reference_weights.py`. "torch_files" writes files of
torch.save for the tests of the readers.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.fixtures.reference_weights import (
    reference_boxes,
    reference_image,
    reference_state,
    training_batch,
)

GRADIENT_SAMPLES = 64  # entries per parameter, evenly spaced in PyTorch's order
MASK_RCNN_SIZE = 192, 256  # the transform leaves images of this size as they are


def torchvision_deeplabv3_resnet50():
    return outputs(_torchvision_deeplabv3(), height=129, width=161)


def torchvision_deeplabv3_mobilenet_v3_large():
    from torchvision.models import segmentation

    model = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    return outputs(model, height=65, width=97)


def smp_unet_resnet34():
    import segmentation_models_pytorch as smp

    return outputs(smp.Unet("resnet34", encoder_weights=None, classes=3), height=128, width=160)


def smp_unet_mobilenet_v2():
    import segmentation_models_pytorch as smp

    return outputs(smp.Unet("mobilenet_v2", encoder_weights=None, classes=3), height=64, width=96)


def smp_deeplabv3plus_resnet50():
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)
    return outputs(model, height=128, width=160)


def smp_deeplabv3plus_mobilenet_v2():
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=3)
    return outputs(model, height=64, width=96)


def torchvision_deeplabv3_resnet50_gradients():
    """Records one training step without dropout, in float64, so that rounding plays no part.

    The loss is CE(out) + 0.5 · CE(aux), averaged over valid pixels. "float32_error" is the relative
    distance of each gradient that PyTorch computes in float32.
    """
    model, shapes = with_reference_weights(_torchvision_deeplabv3())
    exact = _gradients(model.double())
    losses, gradients = exact
    single = _gradients(with_reference_weights(_torchvision_deeplabv3())[0])[1]
    record = {"shapes": shapes} | {name: np.float32(value) for name, value in losses.items()}
    for name, gradient in gradients.items():
        flat = gradient.ravel()
        record[f"gradient_norm/{name}"] = np.float32(np.linalg.norm(flat))
        record[f"gradient_sample/{name}"] = flat[samples_of(flat.size)].astype(np.float32)
    errors = [
        np.linalg.norm(single[name] - gradient) / np.linalg.norm(gradient)
        for name, gradient in gradients.items()
    ]
    record["float32_error"] = np.array(errors, np.float32)
    return record


def samples_of(size: int) -> np.ndarray:
    """Returns the recorded entries of a flat gradient, by index."""
    return np.linspace(0, size - 1, min(size, GRADIENT_SAMPLES)).astype(np.int64)


def _gradients(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    dtype = next(model.parameters()).dtype
    images, labels = training_batch()
    labels = torch.from_numpy(labels).long()
    result = model(torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype))
    losses = {
        f"loss_{key}": nn.functional.cross_entropy(result[key], labels, ignore_index=255)
        for key in ("out", "aux")
    }
    (losses["loss_out"] + 0.5 * losses["loss_aux"]).backward()
    gradients = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
    return {name: value.item() for name, value in losses.items()}, gradients


def _torchvision_deeplabv3():
    from torchvision.models import segmentation

    return segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )


def torchvision_maskrcnn_resnet50_fpn():
    """Records every stage for one image; maps of the pyramid are thinned out."""
    model, shapes = with_reference_weights(_torchvision_mask_rcnn("maskrcnn_resnet50_fpn"))
    image, heads = reference_image(*MASK_RCNN_SIZE), model.roi_heads
    with torch.no_grad():
        images, _ = model.transform([channels_first(image)])
        pyramid = model.backbone(images.tensors)
        levels = list(pyramid.values())
        proposals, _ = model.rpn(images, pyramid)
        regions = heads.box_roi_pool(pyramid, proposals, images.image_sizes)
        logits, deltas = heads.box_predictor(heads.box_head(regions))
        [found] = model([channels_first(image)])
        regions = heads.mask_roi_pool(pyramid, [found["boxes"]], images.image_sizes)
        masks = heads.mask_predictor(heads.mask_head(regions))
        rpn, anchors = model.rpn.head(levels), model.rpn.anchor_generator(images, levels)
    record = {"shapes": shapes, "input": image, "normalised_image": channels_last(images.tensors)}
    record |= {f"pyramid_{name}": channels_last(x)[..., ::16] for name, x in pyramid.items()}
    for name, values in zip(("objectness", "deltas"), rpn, strict=True):
        record |= {f"rpn_{name}_{level}": channels_last(x) for level, x in enumerate(values)}
    record |= {"anchors": anchors[0].numpy(), "proposals": proposals[0].numpy()}
    record |= {"box_logits": logits.numpy(), "box_deltas": deltas.numpy()}
    record |= {f"detection_{name}": found[name].numpy() for name in ("boxes", "scores", "labels")}
    record["mask_logits_of_detected_label"] = masks[range(len(masks)), found["labels"]].numpy()
    return record | {"pasted_masks": found["masks"][:8, 0].numpy().astype(np.float16)}


def torchvision_maskrcnn_resnet50_fpn_losses():
    """Records the five losses and the norm of each parameter's gradient, with batch statistics.

    Every anchor and every proposal is sampled, so nothing is random.
    """
    names = ("rpn_batch_size_per_image", "box_batch_size_per_image")
    options = dict.fromkeys(names, 1_000_000)
    model = _torchvision_mask_rcnn("maskrcnn_resnet50_fpn", **options)
    model, shapes = with_reference_weights(model)
    model.train()
    image = reference_image(*MASK_RCNN_SIZE)
    boxes = np.array([[20, 30, 90, 110], [100, 40, 220, 180], [150, 10, 200, 60]], np.float32)
    low, high = boxes[:, None, None, :2], boxes[:, None, None, 2:]
    rows, columns = np.indices(MASK_RCNN_SIZE) + 0.5
    offsets = (np.stack([columns, rows], axis=-1) - (low + high) / 2) / ((high - low) / 2)
    ellipses = np.sum(offsets**2, axis=-1) <= 1
    target = {"boxes": boxes, "labels": np.array([1, 3, 5]), "masks": ellipses.astype(np.uint8)}
    tensors = {name: torch.from_numpy(value) for name, value in target.items()}
    losses = model([channels_first(image)], [tensors])
    sum(losses.values()).backward()
    record = {"shapes": shapes, "input": image}
    record |= {f"target_{name}": value for name, value in target.items()}
    record |= {name: np.float32(value.item()) for name, value in losses.items()}
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    return record | {f"gradient_norm/{name}": np.float32(norm) for name, norm in norms.items()}


def torchvision_maskrcnn_resnet50_fpn_v2():
    """Records every stage, thinned out; the heads get boxes of many sizes within the image.

    The image and the 32 boxes are those of `reference_weights`. The mask head gets the first six.
    """
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    model, shapes = with_reference_weights(_torchvision_mask_rcnn("maskrcnn_resnet50_fpn_v2"))
    height, width = MASK_RCNN_SIZE
    boxes = torch.from_numpy(reference_boxes(32, height=height, width=width))
    heads, sizes = model.roi_heads, [MASK_RCNN_SIZE]
    with torch.no_grad():
        images, _ = model.transform([channels_first(reference_image(height, width))])
        pyramid = model.backbone(images.tensors)
        rpn = model.rpn.head(list(pyramid.values()))
        regions = heads.box_head(heads.box_roi_pool(pyramid, [boxes], sizes))
        logits, deltas = heads.box_predictor(regions)
        regions = heads.mask_roi_pool(pyramid, [boxes[:6]], sizes)
        masks = heads.mask_predictor(heads.mask_head(regions))
        photo = np.rint(255 * reference_image(501, 640)).astype(np.uint8)
        mean, std = model.transform.image_mean, model.transform.image_std
        resize = GeneralizedRCNNTransform(800, 1333, mean, std).eval()
        resized, _ = resize([channels_first(photo) / 255])
    record = {"shapes": shapes, "size": np.array(resized.image_sizes[0])}
    record["resized"] = channels_last(resized.tensors)[0, ::25, ::25]
    record |= {f"pyramid_{name}": channels_last(x)[..., ::32] for name, x in pyramid.items()}
    for name, values in zip(("objectness", "deltas"), rpn, strict=True):
        for level, x in enumerate(values):
            record[f"rpn_{name}_{level}"] = channels_last(x)[:, ::2, ::2]
    record |= {"box_logits": logits.numpy(), "box_deltas": deltas.numpy()}
    return record | {"mask_logits": channels_last(masks)}


def _torchvision_mask_rcnn(name, **options):
    from torchvision.models import detection

    options |= {"num_classes": 6, "min_size": min(MASK_RCNN_SIZE), "max_size": 320}
    return getattr(detection, name)(weights=None, weights_backbone=None, **options)


def outputs(model, *, height, width):
    model, shapes = with_reference_weights(model)
    image = reference_image(height, width)
    with torch.no_grad():
        result = model(channels_first(image)[None])
    result = result if isinstance(result, dict) else {"out": result}
    arrays = {name: value.numpy() for name, value in result.items()}
    return {"shapes": shapes, "input": image} | arrays


def with_reference_weights(model):
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    state = {name: torch.from_numpy(value) for name, value in reference_state(shapes).items()}
    model.load_state_dict(state)
    return model.eval(), json.dumps(shapes)


def channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def channels_last(maps: torch.Tensor) -> np.ndarray:
    return maps.permute(0, 2, 3, 1).numpy()


def torch_files(folder: Path):
    """Writes one state dict in both formats of torch.save, and its arrays."""
    grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = OrderedDict(
        float32=grid,
        strided=grid.permute(2, 0, 1)[1:],  # a view of the storage above
        float16=torch.tensor([1.5, -2.25], dtype=torch.float16),
        bfloat16=torch.tensor([1.5, -3e38], dtype=torch.bfloat16),
        int64=torch.tensor(7),
        bool=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.full((2,), 0.5)),
    )
    state._metadata = {"": {"version": 1}}  # as in a module's state dict
    checkpoint = {"model": state, "epoch": 3, "optimizer": {"state": {0: {"momentum": grid}}}}
    torch.save(checkpoint, folder / "torch_zip.pth")
    torch.save(state, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.detach() for name, value in state.items()}
    arrays["bfloat16"] = arrays["bfloat16"].float()
    np.savez_compressed(
        folder / "torch_arrays.npz", **{name: value.numpy() for name, value in arrays.items()}
    )


RECORDS = (
    torchvision_deeplabv3_resnet50,
    torchvision_deeplabv3_mobilenet_v3_large,
    torchvision_deeplabv3_resnet50_gradients,
    smp_unet_resnet34,
    smp_unet_mobilenet_v2,
    smp_deeplabv3plus_resnet50,
    smp_deeplabv3plus_mobilenet_v2,
    torchvision_maskrcnn_resnet50_fpn,
    torchvision_maskrcnn_resnet50_fpn_losses,
    torchvision_maskrcnn_resnet50_fpn_v2,
)


def main():
    folder, wanted = Path(sys.argv[1]), sys.argv[2:]
    if not wanted or "torch_files" in wanted:
        torch_files(folder)
    for record in RECORDS:
        if not wanted or record.__name__ in wanted:
            path = folder / f"{record.__name__}.npz"
            np.savez_compressed(path, **record())
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
