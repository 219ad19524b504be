"""Architectures: one file each, arrays in, a dict of arrays out.

A network asserts the shapes and dtypes of its inputs with chex when it is called or traced. A wrong
input raises an AssertionError that names the argument in brackets, such as "[images]".
"""

from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.encoder_unet import EncoderUNet
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.unet import UNet

__all__ = [
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Plus",
    "EncoderUNet",
    "MaskRCNN",
    "UNet",
]


def __dir__():
    return __all__
