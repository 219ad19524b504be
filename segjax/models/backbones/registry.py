"""The backbones that a model takes by name.

A backbone of segjax is a file in this folder that keeps the contract of `Backbone`, a name in
`BackboneName` and an entry of `BACKBONES`. A backbone of your own needs the entry alone, and a
configuration that takes its name; see `experiments/extending/convnext_backbone.py`. Without any
entry, a model takes the module itself: `DeepLabV3(21, backbone=MyBackbone())`.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax

from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.mobilenet_v3 import MobileNetV3
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
    "resnet50_v1c",
    "resnet101_v1c",
    "resnext101",
    "xception41",
    "xception65",
    "xception71",
    "mobilenet_v2",
    "mobilenet_v2_1280",
    "mobilenet_v3_large",
]


class Backbone(Protocol):
    """The contract of a backbone: a Linen module that maps images to a dict of maps.

    A map of a smaller output stride, when subsampled, equals the map of a larger one;
    `segjax.models.layers.atrous_units` gives the strides and rates for that. In segjax's own
    backbones position i of a map at stride s is centred on pixel i · s.
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
          multi_grid: rates of the last stage's units, multiplied by the rate that the output
            stride gives; None for the backbone's own dilation.
          train: whether norms use the batch's statistics.

        Returns:
          "features": the last map, at the output stride. Every model reads it.
          "low_level": a map of stride 4, which DeepLab v3+'s decoder reads.
          "auxiliary": the map before the last stage, which the auxiliary heads of DeepLab v3 and
            v3+ read.
          "stage1" … "stage4": strides 4, 8, 16 and 32, which Mask R-CNN's feature pyramid reads.
          "stem": the last map at stride 2, which `EncoderUNet` reads beside the stages.
          "pool1" … "pool4": the maps for DeepLab v1's multi-scale features.
        """
        ...


def _resnet(make, **attributes):
    def backbone(*, width_multiplier, **layers):
        return make(width=round(64 * width_multiplier), **attributes, **layers)

    return backbone


def _vgg16(*, width_multiplier, norm, dtype):
    del norm  # VGG-16 has none
    return VGG16(width=round(64 * width_multiplier), dtype=dtype)


def _mobilenet_v2_1280(**layers):
    return MobileNetV2(top_features=1280, low_level="stage1", **layers)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "vgg16": _vgg16,
    "resnet18": _resnet(resnet18),
    "resnet34": _resnet(resnet34),
    "resnet50": _resnet(resnet50),
    "resnet101": _resnet(resnet101),
    "resnet50_msra": _resnet(resnet50, stride_in="1x1"),
    "resnet101_msra": _resnet(resnet101, stride_in="1x1"),
    "resnet103": _resnet(resnet101, stem="3x3x3"),
    "resnet50_v1c": _resnet(resnet50, stem="v1c"),
    "resnet101_v1c": _resnet(resnet101, stem="v1c"),
    "resnext101": _resnet(resnext101),
    "xception41": xception41,
    "xception65": xception65,
    "xception71": xception71,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v2_1280": _mobilenet_v2_1280,
    "mobilenet_v3_large": MobileNetV3,
}


def make_backbone(
    name: str,
    *,
    norm: Norm = BatchNorm,
    dtype: Any = None,
    width_multiplier: float = 1.0,
) -> nn.Module:
    """Returns the backbone of this name with its paper's sizes.

    Args:
      name: a key of `BACKBONES`. "_msra" strides in the 1×1 convolutions, as MSRA's weights need;
        "resnet103" is ResNet-101 with a stem of three 3×3 convolutions (detectron2), and "_v1c" has
        such a stem with half the channels (mmsegmentation); "resnext101" is ResNeXt-101-32×8d;
        "mobilenet_v2_1280" ends with the 1×1 convolution to 1280 channels, as in
        segmentation-models-pytorch. For other sizes make the module itself.
      norm: normalisation of all layers; VGG-16 has none. Xception's and MobileNetV2's papers and
        weights have epsilon 1e-3, and so have MobileNetV3's weights; the ResNets' have 1e-5.
      dtype: computation dtype.
      width_multiplier: factor of all channels.

    Raises:
      ValueError: there is no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name](width_multiplier=width_multiplier, norm=norm, dtype=dtype)


def backbone_of(model: nn.Module, **layers) -> nn.Module:
    """Returns the backbone of a model that is being called, made here if the model names it.

    The backbone's variables are under "backbone" in both cases.

    Args:
      model: a module with the attribute `backbone`, a name or a module.
      layers: norm and dtype of a named backbone; a module keeps its own.
    """
    if not isinstance(model.backbone, str):
        return model.backbone
    # Without a name here, Linen would name it after its class.
    return make_backbone(model.backbone, **layers).clone(parent=model, name="backbone")
