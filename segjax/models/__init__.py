"""Architectures: one file each, arrays in, a dict of arrays out."""

from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.resnet_unet import ResNetUNet
from segjax.models.unet import UNet

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "MaskRCNN",
    "ResNetUNet",
    "UNet",
]
