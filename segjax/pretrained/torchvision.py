"""torchvision's DeepLab v3 and ImageNet backbones, https://pytorch.org/vision.

Follows the module names of version 0.28, which segmentation-models-pytorch's encoders share.
"""

from collections.abc import Mapping
from functools import partial
from typing import cast

import numpy as np

from segjax.inference.coverings import WholeImage
from segjax.inference.resizing import ShortSide
from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.mobilenet_v3 import LARGE, MobileNetV3
from segjax.models.backbones.registry import BackboneName
from segjax.models.backbones.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from segjax.models.backbones.vgg import VGG16
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.normalization import BatchNorm
from segjax.pretrained.converted import Conversion, class_names
from segjax.pretrained.mapping import (
    Table,
    classifier,
    length_of,
    torch_convolution,
    torch_layer,
    within,
)
from segjax.pretrained.preprocess import IMAGENET
from segjax.tasks.semantic import SemanticTask

RESNETS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}
MOBILE_NORM = partial(BatchNorm, epsilon=1e-3)  # MobileNetV3's
# Ignored: counters of batches, which a norm with a fixed momentum does not use.
COUNTERS = r"\.num_batches_tracked$"


def resnet_table(resnet: ResNet, *, prefix: str) -> Table:
    """Returns the entries of a `ResNet`; the prefix of their names is such as "backbone."."""
    table = torch_layer("stem", f"{prefix}conv1", f"{prefix}bn1")
    for stage, size in enumerate(resnet.stage_sizes, 1):
        for block in range(size):
            ours, theirs = f"stage{stage}_block{block + 1}", f"{prefix}layer{stage}.{block}"
            for i in (1, 2, 3) if resnet.block == "bottleneck" else (1, 2):
                table |= torch_layer(f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{theirs}.bn{i}")
            if block == 0 and (stage > 1 or resnet.block == "bottleneck"):
                table |= torch_layer(
                    f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1"
                )
    return table


def mobilenet_v2_table(*, prefix: str) -> Table:
    """Returns the entries of a `MobileNetV2` of width 1; the prefix is such as "encoder."."""
    features = f"{prefix}features"
    table = torch_layer("stem", f"{features}.0.0", f"{features}.0.1")
    expansions = [expansion for expansion, _, units, _ in MobileNetV2.stages for _ in range(units)]
    for i, expansion in enumerate(expansions):
        ours, theirs, place = f"expanded_conv_{i}", f"{features}.{i + 1}.conv", 0
        for layer in ("expand", "depthwise") if expansion > 1 else ("depthwise",):
            table |= torch_layer(f"{ours}/{layer}", f"{theirs}.{place}.0", f"{theirs}.{place}.1")
            place += 1
        table |= torch_layer(f"{ours}/project", f"{theirs}.{place}", f"{theirs}.{place + 1}")
    return table


def mobilenet_v3_table(prefix: str) -> Table:
    """Returns the entries of a `MobileNetV3`; the prefix is such as "features."."""
    table = torch_layer("stem", f"{prefix}0.0", f"{prefix}0.1")
    channels = 16
    for i, line in enumerate(LARGE, 1):
        ours, theirs, place = f"bottleneck{i}", f"{prefix}{i}.block", 0
        for name in ("expand", "depthwise", "squeeze", "project"):
            if name == "squeeze" and line.squeeze:
                for part, layer in (("reduce", "fc1"), ("restore", "fc2")):
                    table |= torch_convolution(
                        f"{ours}/squeeze/{part}", f"{theirs}.{place}.{layer}", bias=True
                    )
            elif name == "squeeze" or (name == "expand" and line.expanded == channels):
                continue
            else:
                layer = f"{theirs}.{place}"
                table |= torch_layer(f"{ours}/{name}", f"{layer}.0", f"{layer}.1")
            place += 1
        channels = line.features
    top = f"{prefix}{len(LARGE) + 1}"
    return table | torch_layer("top", f"{top}.0", f"{top}.1")


def convert_resnet(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts an ImageNet ResNet to a backbone, without its classifier "fc".

    Also an encoder of segmentation-models-pytorch, as published at Hugging Face's "smp-hub" or as
    `model.encoder.state_dict()`.
    """
    resnet = RESNETS[name.rpartition("/")[2]]()
    table = resnet_table(resnet, prefix="")
    return Conversion(resnet, table, state_dict, rf"{COUNTERS}|^fc\.", IMAGENET)


def convert_mobilenet_v2(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts the ImageNet MobileNetV2 to a backbone, without the 1×1 convolution to 1280 channels
    ("features.18") and the classifier. As with `convert_resnet`, the names may be an encoder's."""
    ignored = rf"{COUNTERS}|^features\.18\.|^classifier\."
    table = mobilenet_v2_table(prefix="")
    return Conversion(MobileNetV2(), table, state_dict, ignored, IMAGENET)


def convert_mobilenet_v3(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts the ImageNet MobileNetV3-Large to a backbone, without its "classifier"."""
    ignored = rf"{COUNTERS}|^classifier\."
    table = mobilenet_v3_table("features.")
    return Conversion(MobileNetV3(norm=MOBILE_NORM), table, state_dict, ignored, IMAGENET)


def convert_vgg16(state_dict: Mapping[str, np.ndarray], *, name: str) -> Conversion:
    """Converts the ImageNet VGG-16 without batch norm to a backbone, without its "classifier"."""
    vgg = VGG16()
    table, index = {}, 0
    for block, size in enumerate(vgg.stage_sizes, 1):
        for i in range(size):
            ours = f"block{block}_conv{i + 1}"
            table |= torch_convolution(ours, f"features.{index}", bias=True)
            index += 2  # the convolution and its ReLU
        index += 1  # the pooling
    return Conversion(vgg, table, state_dict, r"^classifier\.", IMAGENET)


def convert_deeplabv3(
    state_dict: Mapping[str, np.ndarray], *, name: str, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Converts DeepLab v3, with the auxiliary head if the state dict has one.

    The output stride is 8, and 16 with MobileNetV3-Large; the atrous rates are the same. Prediction
    resizes the shorter side to 520 pixels, as torchvision's reference evaluation does.

    Args:
      classes: names of the classes; VOC's by default if there are 21. A head with one output has
        two classes, of which the first is the background.
    """
    backbone = cast(BackboneName, name.removeprefix("torchvision/deeplabv3_"))
    outputs = length_of(state_dict, "classifier.4.weight", 0, otherwise=21)
    classes = class_names(outputs, classes)
    has_auxiliary_head = any(key.startswith("aux_classifier.") for key in state_dict)
    resnet = RESNETS[backbone]() if backbone in RESNETS else None
    model = DeepLabV3(
        len(classes),
        backbone=backbone if resnet else MobileNetV3(norm=MOBILE_NORM),
        output_stride=8 if resnet else 16,
        # The last stage of MobileNetV3 has the larger rate in all blocks, the first included.
        multi_grid=None if resnet else (1, 1, 1),
        atrous_rates=None if resnet else (12, 24, 36),
        head_features=256,
        dropout_rate=0.5,
        auxiliary_head=has_auxiliary_head,
        align_corners=False,
    )
    table = resnet_table(resnet, prefix="backbone.") if resnet else mobilenet_v3_table("backbone.")
    table = within("backbone", table)
    aspp = "classifier.0"
    table |= torch_layer("aspp/pointwise", f"{aspp}.convs.0.0", f"{aspp}.convs.0.1")
    for i in (1, 2, 3):
        table |= torch_layer(f"aspp/atrous{i}", f"{aspp}.convs.{i}.0", f"{aspp}.convs.{i}.1")
    table |= torch_layer("aspp/image_pooling", f"{aspp}.convs.4.1", f"{aspp}.convs.4.2")
    table |= torch_layer("aspp/projection", f"{aspp}.project.0", f"{aspp}.project.1")
    table |= torch_layer("head", "classifier.1", "classifier.2")
    table |= classifier(torch_convolution("logits", "classifier.4", bias=True), outputs)
    if has_auxiliary_head:
        table |= torch_layer("auxiliary_head/head", "aux_classifier.0", "aux_classifier.1")
        logits = torch_convolution("auxiliary_head/logits", "aux_classifier.4", bias=True)
        table |= classifier(logits, outputs)
    task = SemanticTask(
        model=model,
        classes=classes,
        channels=3,
        covering=WholeImage(size=(1, 1), multiple=1),  # no padding: image pooling would see it
        preprocess=IMAGENET,
        input_size=ShortSide(520),
    )
    return Conversion(model, table, state_dict, COUNTERS, IMAGENET, task)
