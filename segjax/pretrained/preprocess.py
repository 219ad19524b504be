"""The normalisation of RGB images (0..255) that each source's weights expect.

Caffe's and MSRA's networks were trained on BGR images. The conversion reverses the input channels
of their first kernel (`mapping.Source.reverse_inputs`), so that every model here reads RGB.
"""

from typing import Literal

from segjax.data.augmentation.semantic import Normalize

# Mean and standard deviation of ImageNet's colours, given by torchvision for values of 0..1.
IMAGENET = Normalize(
    mean=tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
    std=tuple(255 * std for std in (0.229, 0.224, 0.225)),
)
# MSRA's ResNets in detectron2: the same mean only.
MSRA = Normalize(mean=(123.675, 116.28, 103.53), std=1.0)
# Facebook's ResNeXt-101 in detectron2: the same mean, and its own deviations.
FACEBOOK = Normalize(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
# Simonyan and Zisserman's VGG.
CAFFE = Normalize(mean=(123.68, 116.779, 103.939), std=1.0)
# TensorFlow's MobileNet and Xception: values from −1 to 1.
MINUS_ONE_TO_ONE = Normalize(mean=(127.5, 127.5, 127.5), std=127.5)

Pixels = Literal["imagenet", "msra", "facebook", "caffe", "tensorflow"]
NORMALIZATIONS: dict[str, Normalize] = {
    "imagenet": IMAGENET,
    "msra": MSRA,
    "facebook": FACEBOOK,
    "caffe": CAFFE,
    "tensorflow": MINUS_ONE_TO_ONE,
}
