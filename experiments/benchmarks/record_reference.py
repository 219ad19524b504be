"""Records what PyTorch's reference models compute, for the parity tests in tests/pretrained.

    PYTHONPATH=. python experiments/benchmarks/record_reference.py tests/fixtures [NAME ...]

Needs torch 2.13, torchvision 0.28 and segmentation-models-pytorch 0.6, which segjax itself does
not; nothing else in the repository imports them. Each record is one `NAME.npz` of the inputs, the
outputs and "shapes" {state-dict name: shape}; the weights are those of
`tests/fixtures/reference_weights.py`. "torch_files" are files of torch.save, for the readers.
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

GRADIENT_SAMPLES = 64  # of each parameter, evenly spaced in PyTorch's order of its entries


def torchvision_deeplabv3_resnet50():
    return outputs(_torchvision_deeplabv3(), height=129, width=161)


def smp_unet_resnet34():
    import segmentation_models_pytorch as smp

    return outputs(smp.Unet("resnet34", encoder_weights=None, classes=3), height=128, width=160)


def smp_deeplabv3plus_resnet50():
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)
    return outputs(model, height=128, width=160)


def torchvision_deeplabv3_resnet50_gradients():
    """One training step without dropout: loss = CE(out) + 0.5 · CE(aux), means of valid pixels.

    In float64, so that the record has no rounding of its own; "float32_error" is how far each
    gradient of PyTorch's own float32 is from it, relative to its norm.
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
    """Which entries of a flat gradient are recorded."""
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


def torchvision_maskrcnn_resnet50_fpn_v2():
    """Stage by stage, thinned out; the heads for boxes of many sizes within the image.

    The image and the boxes are those of `reference_weights`, 192 × 256 pixels and 32 boxes, of
    which the mask head sees six. torchvision's compiled RoIAlign needs the build of PyTorch that it
    was made for; beside another one, register its Python version first.
    """
    from torchvision.models import detection

    options = {"num_classes": 6, "min_size": 192, "max_size": 320}
    model = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)
    model, shapes = with_reference_weights(model)
    image, boxes = reference_image(192, 256), reference_boxes(32, height=192, width=256)
    heads, given, sizes = model.roi_heads, [torch.from_numpy(boxes)], [(192, 256)]
    with torch.no_grad():
        images, _ = model.transform([torch.from_numpy(image).permute(2, 0, 1)])
        pyramid = model.backbone(images.tensors)
        rpn = model.rpn.head(list(pyramid.values()))
        regions = heads.box_head(heads.box_roi_pool(pyramid, given, sizes))
        logits, deltas = heads.box_predictor(regions)
        regions = heads.mask_roi_pool(pyramid, [given[0][:6]], sizes)
        masks = heads.mask_predictor(heads.mask_head(regions))
        photo = np.rint(255 * reference_image(501, 640)).astype(np.uint8)
        mean, std = model.transform.image_mean, model.transform.image_std
        resize = detection.transform.GeneralizedRCNNTransform(800, 1333, mean, std).eval()
        resized, _ = resize([torch.from_numpy(photo).permute(2, 0, 1) / 255])
    record = {"shapes": shapes, "size": np.array(resized.image_sizes[0])}
    record["resized"] = resized.tensors[0].permute(1, 2, 0).numpy()[::25, ::25]
    for level, value in pyramid.items():
        record[f"pyramid_{level}"] = value.permute(0, 2, 3, 1).numpy()[..., ::32]
    for name, levels in zip(("objectness", "deltas"), rpn, strict=True):
        for level, value in enumerate(levels):
            record[f"rpn_{name}_{level}"] = value.permute(0, 2, 3, 1).numpy()[:, ::2, ::2]
    record |= {"box_logits": logits.numpy(), "box_deltas": deltas.numpy()}
    return record | {"mask_logits": masks.permute(0, 2, 3, 1).numpy()}


def outputs(model, *, height, width):
    model, shapes = with_reference_weights(model)
    image = reference_image(height, width)
    with torch.no_grad():
        result = model(torch.from_numpy(image).permute(2, 0, 1)[None])
    result = result if isinstance(result, dict) else {"out": result}
    arrays = {name: value.numpy() for name, value in result.items()}
    return {"shapes": shapes, "input": image} | arrays


def with_reference_weights(model):
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    state = {name: torch.from_numpy(value) for name, value in reference_state(shapes).items()}
    model.load_state_dict(state)
    return model.eval(), json.dumps(shapes)


def torch_files(folder: Path):
    """Writes one state dict in both formats of torch.save, and its arrays."""
    grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = OrderedDict(
        float32=grid,
        strided=grid.permute(2, 0, 1)[1:],  # of the storage above
        float16=torch.tensor([1.5, -2.25], dtype=torch.float16),
        bfloat16=torch.tensor([1.5, -3e38], dtype=torch.bfloat16),
        int64=torch.tensor(7),
        bool=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
        parameter=nn.Parameter(torch.full((2,), 0.5)),
    )
    state._metadata = {"": {"version": 1}}  # as a module's state dict has it
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
    torchvision_deeplabv3_resnet50_gradients,
    smp_unet_resnet34,
    smp_deeplabv3plus_resnet50,
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
