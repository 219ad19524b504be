"""Configurations of the DeepLab networks."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from segjax.models.backbones.registry import BackboneName
from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.normalization import BatchNorm
from segjax.pretrained.preprocess import Pixels
from segjax.recipes.network_config import BackboneNetworkConfig, configures, module_of


@dataclass(frozen=True)
class BatchNormConfig:
    """Batch norm over all devices; see `segjax.models.normalization`."""

    momentum: float = 0.9997
    """Share of the running statistics that each step keeps (v3, section 4.1); torchvision: 0.9."""
    epsilon: float = 1e-5
    """Number added to the variance; 1e-3 for the weights of Xception and MobileNetV2."""
    head_epsilon: float | None = None
    """Epsilon outside of the backbone; None takes `epsilon`. TensorFlow's DeepLab has 1e-5."""
    frozen: bool = False
    """Use the running statistics in training too, as in the papers' second phase."""

    @property
    def layer(self):
        """The constructor of the backbone's layers."""
        return partial(BatchNorm, momentum=self.momentum, epsilon=self.epsilon, frozen=self.frozen)

    @property
    def head_layer(self):
        """The constructor of all other layers."""
        if self.head_epsilon is None:
            return self.layer
        return replace(self, epsilon=self.head_epsilon).layer


@configures(DeepLabV1, without=("output_stride",))
class DeepLabV1Config(BackboneNetworkConfig):
    """DeepLab v1 on VGG-16; the defaults are LargeFOV. See `segjax.models.DeepLabV1`."""

    backbone: Literal["vgg16"] = "vgg16"
    """The backbone."""
    pixels: Pixels = "caffe"

    def model(self, num_classes: int) -> DeepLabV1:
        # The released networks pool over 3×3 windows.
        backbone = self.backbone_module(self.backbone).clone(pool_size=3)
        return module_of(self, DeepLabV1, num_classes, backbone=backbone, dtype=self.dtype)


@configures(DeepLabV2, without=("output_stride",))
class DeepLabV2Config(BackboneNetworkConfig):
    """DeepLab v2; the defaults are ResNet-101 with ASPP-L. See `segjax.models.DeepLabV2`."""

    backbone: Literal["vgg16", "resnet50", "resnet101", "resnet50_msra", "resnet101_msra"] = (
        "resnet101_msra"
    )
    """The backbone; "_msra" has its strides where MSRA's weights have them."""
    pixels: Pixels = "msra"
    batch_norm: BatchNormConfig = BatchNormConfig(frozen=True)

    def model(self, num_classes: int) -> DeepLabV2:
        backbone = self.backbone_module(self.backbone, self.batch_norm.layer)
        if self.backbone == "vgg16":
            backbone = backbone.clone(pool_size=3)
        return module_of(self, DeepLabV2, num_classes, backbone=backbone, dtype=self.dtype)


@configures(DeepLabV3, without=("aspp",))
class DeepLabV3Config(BackboneNetworkConfig):
    """DeepLab v3; the defaults are the best row of the paper's ASPP table. See
    `segjax.models.DeepLabV3`."""

    backbone: BackboneName = "resnet101"
    """The backbone; see `segjax.models.backbones.registry.make_backbone`."""
    cascaded_stages: int = 0
    """Number of copies of the last stage in cascade, instead of ASPP (section 3.2); 3 gives the
    paper's "block7"."""
    batch_norm: BatchNormConfig = BatchNormConfig()

    def model(self, num_classes: int) -> DeepLabV3:
        norm = self.batch_norm.head_layer
        backbone = self.backbone_module(self.backbone, self.batch_norm.layer)
        if self.cascaded_stages:
            backbone = backbone.clone(cascaded_stages=self.cascaded_stages)
        aspp = not self.cascaded_stages
        return module_of(
            self, DeepLabV3, num_classes, backbone=backbone, aspp=aspp, norm=norm, dtype=self.dtype
        )


@configures(DeepLabV3Plus)
class DeepLabV3PlusConfig(BackboneNetworkConfig):
    """DeepLab v3+; the defaults are the paper's with Xception-65. See
    `segjax.models.DeepLabV3Plus`."""

    backbone: BackboneName = "xception65"
    """The backbone; see `segjax.models.backbones.registry.make_backbone`."""
    pixels: Pixels = "tensorflow"
    batch_norm: BatchNormConfig = BatchNormConfig(epsilon=1e-3)

    def model(self, num_classes: int) -> DeepLabV3Plus:
        norm = self.batch_norm.head_layer
        backbone = self.backbone_module(self.backbone, self.batch_norm.layer)
        return module_of(
            self, DeepLabV3Plus, num_classes, backbone=backbone, norm=norm, dtype=self.dtype
        )
