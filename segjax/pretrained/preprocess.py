"""What the images of each source's weights are made into, as transforms of `data.augment`."""

from dataclasses import dataclass

import numpy as np

from segjax.data.augment import Normalize

# Mean and standard deviation of ImageNet's colours, 0 to 255, as torchvision states them in 0..1.
IMAGENET = Normalize(
    mean=tuple(255 * mean for mean in (0.485, 0.456, 0.406)),
    std=tuple(255 * std for std in (0.229, 0.224, 0.225)),
)
# To [−1, 1], TensorFlow's MobileNet and Xception.
MINUS_ONE_TO_ONE = Normalize(mean=127.5, std=127.5)


@dataclass(frozen=True)
class SubtractMeanBGR:
    """Reverses the channels of an RGB image and subtracts the mean, as float32: Caffe's networks.

    Attributes:
      mean: of blue, green and red, 0 to 255.
    """

    mean: tuple[float, float, float]

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"]
        if image.shape[-1] != 3:
            raise ValueError(f"expected an RGB image, found {image.shape[-1]} channel(s)")
        return {**example, "image": image[..., ::-1].astype(np.float32) - np.float32(self.mean)}
