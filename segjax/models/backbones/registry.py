"""The backbones that a model takes by name."""

from functools import partial
from typing import Any, Literal, get_args

import flax.linen as nn

from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnext101
from segjax.models.backbones.vgg import VGG16
from segjax.models.backbones.xception import xception41, xception65, xception71
from segjax.models.layers import Norm
from segjax.models.normalization import BatchNorm

BackboneName = Literal[
    "vgg16",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet50_msra",
    "resnet101_msra",
    "resnet103",
    "resnext101",
    "xception41",
    "xception65",
    "xception71",
    "mobilenet_v2",
]


def make_backbone(
    name: BackboneName,
    *,
    norm: Norm = BatchNorm,
    dtype: Any = None,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """Returns the backbone of this name with its paper's sizes.

    Args:
      name: one of `BackboneName`. "_msra" has the stride in the 1×1 convolutions, as MSRA's weights
        want it; "resnet103" is ResNet-101 with three 3×3 convolutions as its stem (detectron2);
        "resnext101" is ResNeXt-101-32×8d. For other sizes make the module itself.
      norm: of all its layers; VGG-16 has none. Xception's and MobileNetV2's papers and weights have
        epsilon 1e-3, the ResNets' 1e-5.
      dtype: of its computations.
      width_multiplier: of all its channels.

    Raises:
      ValueError: there is no such backbone.
    """
    if name == "vgg16":
        return VGG16(width=round(64 * width_multiplier), dtype=dtype)
    shared = {"norm": norm, "dtype": dtype}
    if name == "mobilenet_v2":
        return MobileNetV2(width_multiplier=width_multiplier, **shared)
    xceptions = {"xception41": xception41, "xception65": xception65, "xception71": xception71}
    if name in xceptions:
        return xceptions[name](width_multiplier=width_multiplier, **shared)
    resnets = {
        "resnet18": resnet18,
        "resnet34": resnet34,
        "resnet50": resnet50,
        "resnet101": resnet101,
        "resnet50_msra": partial(resnet50, stride_in="1x1"),
        "resnet101_msra": partial(resnet101, stride_in="1x1"),
        "resnet103": partial(resnet101, stem="3x3x3"),
        "resnext101": resnext101,
    }
    if name not in resnets:
        raise ValueError(f"no backbone {name!r}; there are {', '.join(get_args(BackboneName))}")
    return resnets[name](width=round(64 * width_multiplier), **shared)


def backbone_of(model: nn.Module, **layers) -> nn.Module:
    """Returns the backbone of a model that is being called, made where the model has its name.

    Its variables are under "backbone" in both cases.

    Args:
      model: with the attribute `backbone`.
      layers: norm and dtype of a backbone that is made; a module keeps its own.
    """
    if not isinstance(model.backbone, str):
        return model.backbone
    # Linen calls an unnamed part after its class.
    return make_backbone(model.backbone, **layers).clone(parent=model, name="backbone")
