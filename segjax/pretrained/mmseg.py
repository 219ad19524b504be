"""DeepLab v3 and v3+ from mmsegmentation's model zoo,
https://github.com/open-mmlab/mmsegmentation.

Follows the module names and settings of version 1.2, which are those of 0.x: `_base_/models/
deeplabv3_r50-d8.py`, `_base_/models/deeplabv3plus_r50-d8.py`, `_base_/datasets/` and the files in
deeplabv3/ and deeplabv3plus/, all in the package's configs/. Names here are those files' without
schedule and data set. "_769x769" are Cityscapes' models of that crop: their upsampling keeps the
corners in place, and they predict by windows. The R-18 and R-50b models do not fit. Dropout is
before the classifier in mmsegmentation, and after ASPP in ours of v3+.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data.datasets.ade20k.class_names import CLASS_NAMES
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.resizing import Within
from segjax.models.backbones.resnet import ResNet, resnet50, resnet101
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.pretrained.converted import Conversion, class_names
from segjax.pretrained.mapping import (
    Table,
    classifier,
    length_of,
    torch_convolution,
    torch_layer,
    torch_norm,
    within,
)
from segjax.pretrained.preprocess import IMAGENET
from segjax.pretrained.torchvision import COUNTERS, resnet_table
from segjax.tasks.semantic import SemanticTask
from segjax.weights.known import CITYSCAPES

CLASSES = {len(CITYSCAPES): CITYSCAPES, len(CLASS_NAMES): CLASS_NAMES}
DEPTHS = {"r50": ("resnet50_v1c", resnet50), "r101": ("resnet101_v1c", resnet101)}


def convert_deeplab(
    state_dict: Mapping[str, np.ndarray], *, name: str, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Converts DeepLab v3 or v3+ at output stride 8, with the auxiliary head if it is there.

    Prediction resizes images to 512 × 2048 pixels at most, keeping their shape, and Cityscapes'
    to 1024 × 2048.

    Args:
      classes: names of the classes. By default Cityscapes' for 19, ADE20K's for 150, VOC's for 21
        and numbered ones otherwise. A head with one output has two, the first the background.
    """
    architecture, depth, *crop = name.removeprefix("mmseg/").replace("-d8", "").split("_")
    is_plus = architecture == "deeplabv3plus"
    backbone, make = DEPTHS[depth]
    head = "decode_head"
    outputs = length_of(state_dict, f"{head}.conv_seg.weight", 0, otherwise=21)
    classes = class_names(outputs, classes or CLASSES.get(outputs))
    features = length_of(state_dict, f"{head}.conv_seg.weight", 1, otherwise=512)
    has_auxiliary_head = any(key.startswith("auxiliary_head.") for key in state_dict)
    options: dict[str, Any] = {
        "backbone": backbone,
        "output_stride": 8,
        "multi_grid": None,
        "aspp_features": features,
        "projection_size": 3,
        "auxiliary_head": has_auxiliary_head,
        "align_corners": bool(crop),
    }
    table = within("backbone", _resnet_table(make(stem="v1c")))
    # Image pooling comes first in mmsegmentation's concatenation, and last in ours.
    table |= _layer("aspp/projection", f"{head}.bottleneck", first_input=features)
    table |= _layer("aspp/image_pooling", f"{head}.image_pool.1")
    table |= _layer("aspp/pointwise", f"{head}.aspp_modules.0")
    atrous = _separable if is_plus else _layer
    for i in (1, 2, 3):
        table |= atrous(f"aspp/atrous{i}", f"{head}.aspp_modules.{i}")
    if is_plus:
        model = DeepLabV3Plus(len(classes), decoder_features=features, **options)
        table |= _layer("decoder/low_level", f"{head}.c1_bottleneck")
        for i in (0, 1):
            table |= _separable(f"decoder/conv{i + 1}", f"{head}.sep_bottleneck.{i}")
    else:
        model = DeepLabV3(len(classes), **options)
    table |= classifier(torch_convolution("logits", f"{head}.conv_seg", bias=True), outputs)
    if has_auxiliary_head:
        table |= _layer("auxiliary_head/head", "auxiliary_head.convs.0")
        logits = torch_convolution("auxiliary_head/logits", "auxiliary_head.conv_seg", bias=True)
        table |= classifier(logits, outputs)
    whole = WholeImage(size=(1, 1), multiple=1)  # no padding: image pooling would see it
    task = SemanticTask(
        model=model,
        classes=classes,
        channels=3,
        covering=SlidingWindow(size=(769, 769), stride=(513, 513)) if crop else whole,
        preprocess=IMAGENET,
        input_size=_size(classes, bool(crop)),
    )
    return Conversion(model, table, state_dict, COUNTERS, IMAGENET, task)


def _size(classes: tuple[str, ...], is_cropped: bool) -> Within:
    if is_cropped:
        return Within(short=1025, long=2049)
    return Within(short=1024, long=2048) if classes == CITYSCAPES else Within(short=512, long=2048)


def _resnet_table(resnet: ResNet) -> Table:
    """Returns the entries of a ResNetV1c: torchvision's names, and a stem of three layers."""
    table = {
        path: source
        for path, source in resnet_table(resnet, prefix="backbone.").items()
        if "/stem/" not in path
    }
    for i in (1, 2, 3):
        place = 3 * (i - 1)  # convolution, norm and ReLU
        table |= torch_layer(f"stem{i}", f"backbone.stem.{place}", f"backbone.stem.{place + 1}")
    return table


def _layer(path: str, name: str, **options) -> Table:
    """Returns the entries of a `ConvModule` with batch norm."""
    table = torch_convolution(f"{path}/convolution", f"{name}.conv", **options)
    return table | torch_norm(f"{path}/norm", f"{name}.bn")


def _separable(path: str, name: str) -> Table:
    """Returns the entries of a `DepthwiseSeparableConvModule`."""
    table = torch_convolution(f"{path}/depthwise", f"{name}.depthwise_conv.conv")
    table |= torch_norm(f"{path}/depthwise_norm", f"{name}.depthwise_conv.bn")
    return table | _layer(f"{path}/pointwise", f"{name}.pointwise_conv")
