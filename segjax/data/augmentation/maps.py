"""Maps: the entries of an example that have a value at each pixel of its image."""

from collections.abc import Callable
from typing import Any

import numpy as np

from segjax.data.sources.protocol import OBJECTS, OPTIONAL_OBJECTS, VALUE_OUTSIDE, batch_array

# With float64 and other numbers of channels, cv2.remap rounds positions to 1/32 pixel.
_OPENCV_TYPES = ("u1", "i1", "u2", "i2", "i4", "f4")
_EXACT_CHANNELS = (1, 3, 4)


def maps_of(example: dict[str, Any]) -> dict[str, np.ndarray]:
    """The maps of an example by name, without the image itself.

    A map is an array of two or more dimensions that does not belong to objects.

    Raises:
      ValueError: the image has another type or no channel axis, or a map has another height or
        width.
    """
    image = example["image"]
    if image.ndim != 3 or not (image.dtype.kind == "f" or image.dtype in (np.uint8, np.uint16)):
        raise ValueError(
            f"'image' is {image.dtype} of shape {image.shape}; expected uint8, uint16 or float32 "
            "[height, width, channels]"
        )
    others = {"image", *OBJECTS, *OPTIONAL_OBJECTS}
    maps = {
        key: value
        for key, value in example.items()
        if isinstance(value, np.ndarray) and value.ndim >= 2 and key not in others
    }
    for key, value in maps.items():
        if value.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"{key!r} is {value.shape[:2]} but the image {image.shape[:2]}; an array of two or "
                "more dimensions is a map over the image, so store any other as a vector"
            )
    return maps


def is_interpolated(key: str, value: np.ndarray) -> bool:
    """Whether a map is interpolated; otherwise each pixel takes the nearest value.

    "weights" take the nearest, because a weight belongs to its pixel's label.
    """
    return value.dtype.kind == "f" and key not in VALUE_OUTSIDE


def by_opencv(
    function: Callable[[np.ndarray], np.ndarray], key: str, value: np.ndarray
) -> np.ndarray:
    """Applies a function of OpenCV, [H, W, C] to [h, w, C], to a map of any type and channels."""
    pixels = value
    if value.dtype == bool:
        pixels = value.view(np.uint8)
    elif value.dtype.str[1:] not in _OPENCV_TYPES:
        pixels = batch_array(key, value)
    channels = pixels.reshape(*value.shape[:2], -1)
    count = channels.shape[2]
    step = count if count in _EXACT_CHANNELS else 1
    parts = [function(channels[..., first : first + step]) for first in range(0, count, step)]
    moved = parts[0] if len(parts) == 1 else np.dstack(parts)
    moved = moved.reshape(*moved.shape[:2], *value.shape[2:])  # OpenCV drops a single channel
    return moved.view(bool) if value.dtype == bool else moved


def pad_map(key: str, value: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pads a map at the bottom and the right to `size` (height, width)."""
    padded = np.full((*size, *value.shape[2:]), VALUE_OUTSIDE.get(key, 0), value.dtype)
    padded[: value.shape[0], : value.shape[1]] = value
    return padded
