"""Resizes whole images and probability maps, and computes the size that a network wants."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# The most channels that OpenCV 5 resizes at once, by interpolation.
_MOST_CHANNELS = {cv2.INTER_LINEAR: 128, cv2.INTER_AREA: 4}


@dataclass(frozen=True)
class ShortSide:
    """The size at which the shorter side has `length` pixels, with the aspect ratio kept.

    The longer side is rounded. torchvision, which tests at a short side of 520, truncates it.
    """

    length: int

    def __post_init__(self):
        _check_length(self)

    def __call__(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Takes [height, width, ...], returns (height, width)."""
        return enlarged_size(image_shape, self.length / min(image_shape[:2]))


@dataclass(frozen=True)
class LongSide:
    """The size at which the longer side has `length` pixels, with the aspect ratio kept."""

    length: int

    def __post_init__(self):
        _check_length(self)

    def __call__(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Takes [height, width, ...], returns (height, width)."""
        return enlarged_size(image_shape, self.length / max(image_shape[:2]))


@dataclass(frozen=True)
class Within:
    """The largest size of the image's aspect ratio whose sides have at most these lengths.

    mmsegmentation resizes so; the longer limit is for the longer side, whichever that is.
    """

    short: int
    long: int

    def __post_init__(self):
        if not 1 <= self.short <= self.long:
            raise ValueError(f"expected 1 ≤ short ≤ long, found {self.short} and {self.long}")

    def __call__(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Takes [height, width, ...], returns (height, width)."""
        short, long = sorted(image_shape[:2])
        return enlarged_size(image_shape, min(self.short / short, self.long / long))


def enlarged_size(image_shape: Sequence[int], scale: float) -> tuple[int, int]:
    """Multiplies an image's height and width by `scale` and rounds, to at least 1 pixel each."""
    height, width = (max(int(length * scale + 0.5), 1) for length in image_shape[:2])
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image or a probability map [height, width, ...] to `size`, bilinearly.

    Pixels are squares and the outer edges stay in place, as with PyTorch's align_corners=False. If
    a side shrinks to less than half, areas are averaged: bilinear interpolation would skip pixels.
    Probabilities stay in [0, 1] and still sum to one.

    Takes uint8, uint16, float32 or float64 and keeps the type. An image that already has the size
    is returned itself.
    """
    if image.shape[:2] == tuple(size):
        return image
    shrinks = any(2 * new < old for new, old in zip(size, image.shape[:2], strict=True))
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    channels = image.reshape(*image.shape[:2], -1)
    most = _MOST_CHANNELS[interpolation]
    parts = [
        cv2.resize(channels[..., first : first + most], size[::-1], interpolation=interpolation)
        for first in range(0, channels.shape[2], most)
    ]
    resized = parts[0] if len(parts) == 1 else np.dstack(parts)
    return resized.reshape(*size, *image.shape[2:])


def _check_length(rule: ShortSide | LongSide):
    if rule.length < 1:
        raise ValueError(f"{type(rule).__name__}: length must be at least 1, found {rule.length}")
