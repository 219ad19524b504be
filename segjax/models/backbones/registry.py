"""The backbones that a model takes by name.

A new backbone is a file in this folder that keeps the contract of `Backbone`, a name in
`BackboneName` and a line in `BACKBONES`. A module that is not registered goes into a model as it
is: `DeepLabV3(21, backbone=MyBackbone())`.
"""

from typing import Any, Literal, Protocol, get_args

import flax.linen as nn
import jax

from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.resnet import resnet18, resnet34, resnet50, resnet101, resnext101
from segjax.models.backbones.vgg import VGG16
from segjax.models.backbones.xception import xception41, xception65, xception71
from segjax.models.normalization import BatchNorm, Norm

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


class Backbone(Protocol):
    """The contract of a backbone: a Linen module that maps images to a dict of maps.

    Position i of a map at stride s is centred on pixel i · s. A map of a smaller output stride,
    subsampled, equals that of a larger one; `segjax.models.layers.atrous_units` sees to both.
    """

    def __call__(
        self,
        images: jax.Array,
        *,
        output_stride: int = 32,
        multi_grid: tuple[int, ...] | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Computes the maps, each [batch, height, width, channels].

        Args:
          images: [batch, height, width, channels].
          output_stride: stride of "features": 8, 16 or 32.
          multi_grid: rates of the last stage's units, times the rate of the output stride.
          train: whether norms use the batch's statistics.

        Returns:
          "features": the last map, at the output stride. Every model reads it.
          "low_level": a map of stride 4, for the decoder of DeepLab v3+.
          "auxiliary": the map before the last stage, for the auxiliary heads of DeepLab v3 and v3+.
          "stem" (stride 2), "stage1" … "stage4" (strides 4, 8, 16, 32): for the feature pyramid of
            Mask R-CNN and the skip connections of `ResNetUNet`.
          "pool1" … "pool4": for the multi-scale features of DeepLab v1.
        """


def _resnet(make, **attributes):
    def backbone(*, width_multiplier, **layers):
        return make(width=round(64 * width_multiplier), **attributes, **layers)

    return backbone


def _vgg16(*, width_multiplier, norm, dtype):
    del norm  # VGG-16 has none
    return VGG16(width=round(64 * width_multiplier), dtype=dtype)


BACKBONES = {
    "vgg16": _vgg16,
    "resnet18": _resnet(resnet18),
    "resnet34": _resnet(resnet34),
    "resnet50": _resnet(resnet50),
    "resnet101": _resnet(resnet101),
    "resnet50_msra": _resnet(resnet50, stride_in="1x1"),
    "resnet101_msra": _resnet(resnet101, stride_in="1x1"),
    "resnet103": _resnet(resnet101, stem="3x3x3"),
    "resnext101": _resnet(resnext101),
    "xception41": xception41,
    "xception65": xception65,
    "xception71": xception71,
    "mobilenet_v2": MobileNetV2,
}


def make_backbone(
    name: BackboneName,
    *,
    norm: Norm = BatchNorm,
    dtype: Any = None,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """Returns the backbone of this name with its paper's sizes.

    Args:
      name: one of `BackboneName`. "_msra" strides in the 1×1 convolutions, as MSRA's weights want;
        "resnet103" is ResNet-101 with three 3×3 convolutions as its stem (detectron2);
        "resnext101" is ResNeXt-101-32×8d. For other sizes make the module itself.
      norm: normalisation of all layers; VGG-16 has none. Xception's and MobileNetV2's papers and
        weights have epsilon 1e-3, the ResNets' 1e-5.
      dtype: dtype of the computation.
      width_multiplier: factor of all channels.

    Raises:
      ValueError: there is no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there are {', '.join(get_args(BackboneName))}")
    return BACKBONES[name](width_multiplier=width_multiplier, norm=norm, dtype=dtype)


def backbone_of(model: nn.Module, **layers) -> nn.Module:
    """Returns the backbone of a model that is being called; makes it if the model has its name.

    Its variables are under "backbone" in both cases.

    Args:
      model: module with the attribute `backbone`.
      layers: norm and dtype of a backbone that is made; a module keeps its own.
    """
    if not isinstance(model.backbone, str):
        return model.backbone
    # Linen names an unnamed part after its class.
    return make_backbone(model.backbone, **layers).clone(parent=model, name="backbone")
