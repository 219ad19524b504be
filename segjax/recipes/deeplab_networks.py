"""The networks of the DeepLab line as configurations; what each field means, its model says."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp

from segjax.data.augmentation.semantic import Normalize
from segjax.models.backbones.registry import BackboneName, make_backbone
from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.normalization import BatchNorm
from segjax.pretrained import preprocess


@dataclass(frozen=True)
class BatchNormConfig:
    """Batch norm, over all devices; see `segjax.models.normalization`."""

    momentum: float = 0.9997
    """Of the running statistics (v3, section 4.1); torchvision keeps 0.9."""
    epsilon: float = 1e-5
    """1e-3 for the weights of Xception and MobileNetV2."""
    frozen: bool = False
    """Use the running statistics in training too: the papers' second phase."""

    @property
    def layer(self):
        return partial(
            BatchNorm,
            momentum=self.momentum,
            epsilon=self.epsilon,
            frozen=self.frozen,
        )


Pixels = Literal["imagenet", "msra", "caffe", "tensorflow"]
NORMALIZATIONS = {
    "imagenet": preprocess.IMAGENET,
    "msra": preprocess.MSRA,
    "caffe": preprocess.CAFFE,
    "tensorflow": preprocess.MINUS_ONE_TO_ONE,
}


@dataclass(frozen=True)
class BackboneConfig:
    """What the networks have in common."""

    pixels: Pixels = "imagenet"
    """How the backbone's weights want the pixels: torchvision's mean and deviation, the mean alone
    (MSRA's ResNets, or Caffe's VGG), or TensorFlow's range from −1 to 1."""
    width_multiplier: float = 1.0
    """Of the backbone's channels."""
    align_corners: bool = True
    """Of the bilinear upsampling of logits; torchvision's and mmsegmentation's models: False."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters and losses stay float32."""

    @property
    def normalize(self) -> Normalize:
        return NORMALIZATIONS[self.pixels]

    @property
    def dtype(self) -> Any:
        return jnp.bfloat16 if self.bfloat16 else None

    def backbone_module(self, name: BackboneName, norm=BatchNorm):
        return make_backbone(
            name, norm=norm, dtype=self.dtype, width_multiplier=self.width_multiplier
        )


@dataclass(frozen=True, kw_only=True)
class DeepLabV1Config(BackboneConfig):
    """DeepLab v1 on VGG-16; the defaults are LargeFOV. See `segjax.models.DeepLabV1`."""

    pixels: Pixels = "caffe"
    kernel_size: int = 3
    """Of fc6."""
    atrous_rate: int = 12
    """Of fc6."""
    head_features: int = 1024
    """Of fc6 and fc7."""
    average_pooling: bool = True
    """Average over 3×3 windows before fc6, as in the released LargeFOV networks only."""
    multi_scale_features: bool = False
    """Classify with the image and the first four pooled maps as well (MSc, section 4.3)."""
    dropout_rate: float = 0.5

    def model(self, num_classes: int) -> DeepLabV1:
        return DeepLabV1(
            num_classes,
            # The released networks pool over 3×3 windows.
            backbone=self.backbone_module("vgg16").clone(pool_size=3),
            average_pooling=self.average_pooling,
            kernel_size=self.kernel_size,
            atrous_rate=self.atrous_rate,
            head_features=self.head_features,
            multi_scale_features=self.multi_scale_features,
            dropout_rate=self.dropout_rate,
            align_corners=self.align_corners,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True)
class DeepLabV2Config(BackboneConfig):
    """DeepLab v2; the defaults are ResNet-101 with ASPP-L. See `segjax.models.DeepLabV2`."""

    backbone: Literal["vgg16", "resnet50", "resnet101", "resnet50_msra", "resnet101_msra"] = (
        "resnet101_msra"
    )
    pixels: Pixels = "msra"
    atrous_rates: tuple[int, ...] = (6, 12, 18, 24)
    """ASPP-L; ASPP-S is (2, 4, 8, 12), LargeFOV (12,)."""
    kernel_size: int = 3
    """Of the atrous convolutions."""
    head_features: int = 1024
    """Of each branch's fc6 and fc7 on VGG-16; ResNets have none."""
    scales: tuple[float, ...] = (1.0,)
    """Of the input, whose score maps are fused by their maximum; the paper's are 0.5 0.75 1."""
    dropout_rate: float = 0.5
    batch_norm: BatchNormConfig = BatchNormConfig(frozen=True)

    def model(self, num_classes: int) -> DeepLabV2:
        backbone = self.backbone_module(self.backbone, self.batch_norm.layer)
        is_vgg = self.backbone == "vgg16"
        return DeepLabV2(
            num_classes,
            backbone=backbone.clone(pool_size=3) if is_vgg else backbone,
            atrous_rates=self.atrous_rates,
            kernel_size=self.kernel_size,
            head_features=self.head_features if is_vgg else None,
            scales=self.scales,
            dropout_rate=self.dropout_rate,
            align_corners=self.align_corners,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True)
class DeepLabV3Config(BackboneConfig):
    """DeepLab v3; the defaults are the best row of the paper's ASPP table. See
    `segjax.models.DeepLabV3`."""

    backbone: BackboneName = "resnet101"
    output_stride: Literal[8, 16, 32] = 16
    multi_grid: tuple[int, ...] | None = (1, 2, 4)
    """None is that of a network without a dilated stage."""
    atrous_rates: tuple[int, ...] | None = None
    """None is (6, 12, 18) at output stride 16, twice that at 8."""
    image_pooling: bool = True
    """An ASPP branch with the image's mean."""
    image_pooling_window: tuple[int, int] | None = None
    """Means over windows of so many positions instead, without batch norm (detectron2)."""
    cascaded_stages: int = 0
    """Copies of the last stage in cascade, and no ASPP (section 3.2); 3 is "block7"."""
    features: int = 256
    """Of ASPP and the auxiliary head."""
    dropout_rate: float = 0.1
    auxiliary_head: bool = False
    batch_norm: BatchNormConfig = BatchNormConfig()

    def model(self, num_classes: int) -> DeepLabV3:
        norm = self.batch_norm.layer
        backbone = self.backbone_module(self.backbone, norm)
        if self.cascaded_stages:
            backbone = backbone.clone(cascaded_stages=self.cascaded_stages)
        return DeepLabV3(
            num_classes,
            backbone=backbone,
            output_stride=self.output_stride,
            multi_grid=self.multi_grid,
            aspp=not self.cascaded_stages,
            atrous_rates=self.atrous_rates,
            image_pooling=self.image_pooling_window or self.image_pooling,
            aspp_features=self.features,
            dropout_rate=self.dropout_rate,
            auxiliary_head=self.auxiliary_head,
            align_corners=self.align_corners,
            norm=norm,
            dtype=self.dtype,
        )


@dataclass(frozen=True, kw_only=True)
class DeepLabV3PlusConfig(BackboneConfig):
    """DeepLab v3+; the defaults are the paper's with Xception-65. See
    `segjax.models.DeepLabV3Plus`."""

    backbone: BackboneName = "xception65"
    pixels: Pixels = "tensorflow"
    output_stride: Literal[8, 16, 32] = 16
    multi_grid: tuple[int, ...] | None = None
    atrous_rates: tuple[int, ...] | None = None
    """None is (6, 12, 18) at output stride 16, twice that at 8."""
    image_pooling: bool = True
    """An ASPP branch with the image's mean."""
    image_pooling_window: tuple[int, int] | None = None
    """Means over windows of so many positions instead, without batch norm (detectron2)."""
    features: int = 256
    """Of ASPP and of the decoder."""
    decoder: bool = True
    low_level_features: int = 48
    """To which the decoder reduces the map at stride 4."""
    decoder_convolutions: int = 2
    separable: bool = True
    """Atrous separable convolutions in ASPP and decoder (section 3.1)."""
    dropout_rate: float = 0.1
    batch_norm: BatchNormConfig = BatchNormConfig(epsilon=1e-3)

    def model(self, num_classes: int) -> DeepLabV3Plus:
        norm = self.batch_norm.layer
        return DeepLabV3Plus(
            num_classes,
            backbone=self.backbone_module(self.backbone, norm),
            output_stride=self.output_stride,
            multi_grid=self.multi_grid,
            atrous_rates=self.atrous_rates,
            image_pooling=self.image_pooling_window or self.image_pooling,
            aspp_features=self.features,
            low_level_features=self.low_level_features if self.decoder else None,
            decoder_features=self.features,
            decoder_convolutions=self.decoder_convolutions,
            separable=self.separable,
            dropout_rate=self.dropout_rate,
            align_corners=self.align_corners,
            norm=norm,
            dtype=self.dtype,
        )


NetworkConfig = DeepLabV1Config | DeepLabV2Config | DeepLabV3Config | DeepLabV3PlusConfig
