"""PyTorch's side of the model benchmark: the same networks, losses and optimiser.

U-Net is written here; DeepLab v3 and Mask R-CNN are torchvision's, DeepLab v3+ is
segmentation-models-pytorch's. Channels-last memory, autocast to bfloat16 and `torch.compile` are
options.
"""

import contextlib

import inputs
import numpy as np
import torch
from torch import nn
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Block(nn.Sequential):
    def __init__(self, channels, features):
        super().__init__(
            nn.Conv2d(channels, features, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """The paper's U-Net with padding, like `segjax.models.UNet(padding="SAME")`."""

    def __init__(self, num_classes, *, channels=1, features=32, depth=4):
        super().__init__()
        widths = [features * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(map(Block, [channels, *widths], widths))
        wide_first = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in wide_first[1:]
        )
        self.after = nn.ModuleList(Block(2 * width, width) for width in wide_first[1:])
        self.logits = nn.Conv2d(features, num_classes, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            x = block(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.after, strict=True):
            x = block(torch.cat([skips.pop(), up(x)], dim=1))
        return {"out": self.logits(x)}


class Smp(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return {"out": self.model(x)}


def segmenter(network: str):
    if network == "unet":
        return UNet(2), 2, 1
    if network == "deeplabv3":
        from torchvision.models.segmentation import deeplabv3_resnet50

        options = {"weights": None, "weights_backbone": None, "aux_loss": True}
        return deeplabv3_resnet50(num_classes=21, **options), 21, 3
    if network == "deeplabv3plus":
        import segmentation_models_pytorch as smp

        return Smp(smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)), 21, 3
    raise ValueError(f"no network {network!r}")


def prepared(model, *, bfloat16: bool, compiled: bool, channels_last: bool):
    """Returns the model on the device, and the context in which it computes."""
    torch.manual_seed(0)
    model = model.to(DEVICE, memory_format=layout(channels_last))
    context = torch.autocast(DEVICE, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    return (torch.compile(model) if compiled else model), context


def on_device(images, *, channels_last: bool = False):
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return images.to(DEVICE, memory_format=layout(channels_last))


def layout(channels_last: bool):
    return torch.channels_last if channels_last else torch.contiguous_format


def finished():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class TrainStep:
    """Forward pass, backward pass and update by SGD with momentum 0.9; `loss` takes no argument."""

    def __init__(self, parameters, context, loss):
        parameters = [p for p in parameters if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
        self.context, self.loss, self.note = context, loss, ""

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.context:
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.note = f"loss {loss.item():.3f}"
        finished()


def semantic_train_step(
    network: str,
    batch: int,
    size: tuple[int, int],
    bfloat16: bool,
    compiled: bool = False,
    channels_last: bool = False,
):
    model, num_classes, channels = segmenter(network)
    options = {"bfloat16": bfloat16, "compiled": compiled, "channels_last": channels_last}
    model, context = prepared(model.train(), **options)
    images = on_device(inputs.images(batch, size, channels), channels_last=channels_last)
    labels = torch.from_numpy(inputs.labels(batch, size, num_classes)).long().to(DEVICE)

    def loss():
        outputs = model(images)
        losses = {
            name: functional.cross_entropy(logits, labels, ignore_index=inputs.IGNORE_LABEL)
            for name, logits in outputs.items()
        }
        return losses["out"] + 0.4 * losses.get("aux", 0.0)

    return TrainStep(model.parameters(), context, loss)


def semantic_inference(
    network: str,
    batch: int,
    size: tuple[int, int],
    bfloat16: bool,
    compiled: bool = False,
    channels_last: bool = False,
):
    model, _, channels = segmenter(network)
    if network == "deeplabv3":
        model.aux_classifier = None
    options = {"bfloat16": bfloat16, "compiled": compiled, "channels_last": channels_last}
    model, context = prepared(model.eval(), **options)
    images = on_device(inputs.images(batch, size, channels), channels_last=channels_last)

    @torch.inference_mode()
    def call():
        with context:
            return model(images)["out"].argmax(1).to(torch.uint8).cpu().numpy()

    return call


def detector():
    """Builds `maskrcnn_resnet50_fpn` as trained from ImageNet weights, but with seeded weights.

    Its norms, stem and first stage are frozen, which torchvision's own builder does not do without
    weights. The weights are scaled to give typical work: maps do not grow with each block although
    the norms do nothing, proposals stay near their anchors so that some are positive, and many
    boxes score above 0.05.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    torch.manual_seed(0)
    options = {"norm_layer": FrozenBatchNorm2d, "trainable_layers": 3}
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, **options)
    model = MaskRCNN(backbone, num_classes=91)
    with torch.no_grad():
        for name, module in backbone.body.named_modules():
            if name.endswith(("bn3", "downsample.1")):
                module.weight.mul_(0.5)
        model.rpn.head.bbox_pred.weight.mul_(0.1)
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
    return model


def write_detector(weights: str):
    return write_weights(detector(), weights)


def write_segmenter(network: str, weights: str):
    """Writes seeded weights of a network of `segmenter`."""
    torch.manual_seed(0)
    return write_weights(segmenter(network)[0], weights)


def write_weights(model, weights: str):
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, weights)
    return lambda: None


def instance_train_step(
    batch: int,
    size: tuple[int, int],
    objects: int,
    bfloat16: bool,
    compiled: bool = False,
    channels_last: bool = False,
    weights: str | None = None,
):
    """Builds a step without the model's `transform` of images, which is not the network's work.

    `weights` are for the other side; they equal those of `detector`.
    """
    from torchvision.models.detection.image_list import ImageList

    model = detector().train()
    options = {"bfloat16": bfloat16, "compiled": False, "channels_last": channels_last}
    model, context = prepared(model, **options)
    if compiled:
        model.backbone = torch.compile(model.backbone)
    images = on_device(inputs.images(batch, size, 3), channels_last=channels_last)
    images = ImageList(images, [tuple(size)] * batch)
    truth = inputs.objects(batch, size, objects, 91)
    targets = [
        {
            "boxes": torch.from_numpy(truth["boxes"][i]).to(DEVICE),
            "labels": torch.from_numpy(truth["classes"][i]).long().to(DEVICE),
            "masks": torch.from_numpy(truth["masks"][i]).to(DEVICE),
        }
        for i in range(batch)
    ]

    def loss():
        features = model.backbone(images.tensors)
        proposals, rpn_losses = model.rpn(images, features, targets)
        _, losses = model.roi_heads(features, proposals, images.image_sizes, targets)
        return sum(rpn_losses.values()) + sum(losses.values())

    return TrainStep(model.parameters(), context, loss)


class InstanceInference:
    """Predicts boxes, classes, scores and masks of 28 × 28 from images, without pasting the masks.

    `weights` as in `instance_train_step`.
    """

    def __init__(
        self, weights: str, batch: int, size, bfloat16: bool, compiled=False, channels_last=False
    ):
        from torchvision.models.detection.image_list import ImageList

        model = detector().eval()
        options = {"bfloat16": bfloat16, "compiled": False, "channels_last": channels_last}
        self.model, self.context = prepared(model, **options)
        if compiled:
            self.model.backbone = torch.compile(self.model.backbone)
        images = on_device(inputs.images(batch, size, 3), channels_last=channels_last)
        self.images = ImageList(images, [tuple(size)] * batch)
        self.note = ""

    @torch.inference_mode()
    def __call__(self):
        model, images = self.model, self.images
        with self.context:
            features = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, features)
            found, _ = model.roi_heads(features, proposals, images.image_sizes)
        found = [{name: np.asarray(x.cpu()) for name, x in image.items()} for image in found]
        self.note = f"{sum(len(image['scores']) for image in found)} detections"


def instance_inference(**arguments):
    return InstanceInference(**arguments)
