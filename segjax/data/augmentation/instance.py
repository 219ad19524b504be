"""Transforms of an example with objects: image, boxes and masks together.

A transform is a frozen dataclass, `transform(example, rng) -> example`, as in
`segjax.data.augmentation.semantic`. It never writes into its input and takes all its randomness
from `rng`. It changes "boxes", "masks" and maps over the image
(`segjax.data.sources.protocol.Source`). "classes", "crowd" and "areas" (as annotated, in pixels of
the original image) stay with their objects. Masks are resampled within their windows, never as
whole images. A pixel belongs to a mask that covers at least half of it.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from PIL import Image

from segjax.data.augmentation.maps import by_opencv, is_interpolated, maps_of, pad_map
from segjax.data.instance_masks import EMPTY, CroppedMask, resample_mask, tight_boxes
from segjax.data.sources.protocol import OBJECTS, OPTIONAL_OBJECTS

Rounding = Literal["nearest", "down"]


def resized_size(
    size: tuple[int, int],
    short_side: int,
    max_size: int,
    *,
    rounding: Rounding = "nearest",
) -> tuple[int, int]:
    """Computes the size at which the short side has a given length, with the long side limited.

    Args:
      size: height and width of the image.
      short_side: length of the shorter side, unless the longer one would exceed `max_size`.
      max_size: the largest length of the longer side.
      rounding: "nearest" as in detectron2 (ResizeShortestEdge), "down" as in torchvision
        (GeneralizedRCNNTransform).

    Returns:
      Height and width, at least 1 each.
    """
    shorter, longer = min(size), max(size)
    if rounding == "down":
        scale = min(short_side / shorter, max_size / longer)
        height, width = (max(1, int(scale * side)) for side in size)
        return height, width
    scaled = [short_side * side / shorter for side in size]
    if max(scaled) > max_size:
        reduction = max_size / max(scaled)
        scaled = [reduction * side for side in scaled]
    height, width = (max(1, int(side + 0.5)) for side in scaled)
    return height, width


def resize_image(image: np.ndarray, size: tuple[int, int], *, antialias: bool = True) -> np.ndarray:
    """Resizes an image [H, W, C] to `size` (height, width) bilinearly and keeps its type.

    Pixel centres are at halves, so that corners stay corners. With `antialias`, all pixels count
    where a side shrinks, as in detectron2 (Pillow's filter). Without it, only the two nearest on
    each axis count, as in torchvision.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if not antialias or (height >= image.shape[0] and width >= image.shape[1]):
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    elif image.dtype == np.uint8 and image.shape[2] == 3:
        pillow = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        resized = np.array(pillow)
    else:
        planes = [
            np.array(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            for plane in np.moveaxis(image, 2, 0).astype(np.float32)
        ]
        resized = np.stack(planes, axis=2)
        resized = np.rint(resized).astype(image.dtype) if image.dtype.kind == "u" else resized
    return resized.reshape(height, width, image.shape[2])  # OpenCV drops a single channel


def resize_map(
    key: str, value: np.ndarray, size: tuple[int, int], *, antialias: bool = True
) -> np.ndarray:
    """Resizes a map [H, W, ...] to `size`: as `resize_image` does, or to the nearest values."""

    def resize(pixels: np.ndarray) -> np.ndarray:
        if is_interpolated(key, value):
            return resize_image(pixels, size, antialias=antialias)
        height, width = size
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

    return by_opencv(resize, key, value)


def keep_objects(example: dict, kept: np.ndarray) -> dict:
    """Keeps the objects that `kept` (bool [n] or indices) selects, in that order."""
    places = np.arange(len(example["masks"]))[kept]
    rows = [key for key in (*OBJECTS, *OPTIONAL_OBJECTS) if key in example and key != "masks"]
    objects = {key: example[key][places] for key in rows}
    return {**example, **objects, "masks": tuple(example["masks"][place] for place in places)}


@dataclass(frozen=True)
class ResizeShortSide:
    """Resizes the image so that its short side has one of several lengths, drawn uniformly.

    With a single length, as in evaluation, nothing is drawn, and an example may be an image without
    objects. Annotated boxes are scaled. An object whose mask becomes empty is kept, because it
    still has a box.

    Attributes:
      short_sides: lengths in pixels.
      max_size: the largest length of the long side; to stay within it, the short side gets shorter.
      rounding: how the new size is rounded; see `resized_size`.
      antialias: whether all pixels count when shrinking; see `resize_image`.
    """

    short_sides: tuple[int, ...]
    max_size: int
    _: KW_ONLY
    rounding: Rounding = "nearest"
    antialias: bool = True

    def __post_init__(self):
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides must be positive lengths, got {self.short_sides}")
        if self.max_size < max(self.short_sides):
            raise ValueError(f"max_size {self.max_size} is less than {max(self.short_sides)}")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"rounding must be one of {get_args(Rounding)}, got {self.rounding!r}")

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        short_side = self.short_sides[0]
        if len(self.short_sides) > 1:
            if rng is None:
                raise ValueError(f"short_sides {self.short_sides} are drawn; rng must not be None")
            short_side = self.short_sides[rng.integers(len(self.short_sides))]
        old = example["image"].shape[:2]
        new = resized_size(old, short_side, self.max_size, rounding=self.rounding)
        image = resize_image(example["image"], new, antialias=self.antialias)
        if example.keys() == {"image"}:
            return {"image": image}
        check_objects(example)
        scale = new[0] / old[0], new[1] / old[1]
        boxes = example["boxes"] * np.tile(scale[::-1], 2)
        maps = {
            key: resize_map(key, value, new, antialias=self.antialias)
            for key, value in maps_of(example).items()
        }
        return {
            "portrait": old[0] > old[1],  # even if rounding makes it a square
            **example,
            **maps,
            "image": image,
            "boxes": np.clip(boxes, 0, [*new[::-1]] * 2).astype(np.float32),
            "masks": tuple(
                resample_mask(mask, scale=scale, corner=(0, 0), size=new)
                for mask in example["masks"]
            ),
        }


@dataclass(frozen=True)
class Enlarge:
    """Resizes an image without objects by a factor, for evaluation."""

    scale: float

    def __post_init__(self):
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        old = example["image"].shape[:2]
        height, width = (max(round(self.scale * side), 1) for side in old)
        return {"image": resize_image(example["image"], (height, width))}


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right (`horizontal`) and up and down (`vertical`), each half of the time."""

    _: KW_ONLY
    horizontal: bool = True
    vertical: bool = False

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        check_objects(example)
        maps = maps_of(example)
        vertical, horizontal = rng.random(2) < (0.5 * self.vertical, 0.5 * self.horizontal)
        if not (vertical or horizontal):
            return example
        image, boxes, masks = example["image"], example["boxes"].copy(), example["masks"]
        height, width = image.shape[:2]
        code = -1 if vertical and horizontal else int(horizontal)  # OpenCV's flip code
        if horizontal:
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        if vertical:
            boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
        turned = np.s_[:: -1 if vertical else 1, :: -1 if horizontal else 1]
        mirrored = []
        for mask in masks:
            left, top, right, bottom = mask.box
            top, left = height - bottom if vertical else top, width - right if horizontal else left
            pixels = np.ascontiguousarray(mask.pixels[turned])
            mirrored.append(CroppedMask(top, left, pixels) if pixels.size else EMPTY)
        return {
            **example,
            **{key: np.ascontiguousarray(value[turned]) for key, value in maps.items()},
            "image": cv2.flip(image, code).reshape(image.shape),
            "boxes": boxes,
            "masks": tuple(mirrored),
        }


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resizes the image to fit a random multiple of a size, then crops or fills to that size.

    This is the large-scale jittering of Ghiasi et al., "Simple Copy-Paste" (2021), as in
    detectron2's ResizeScale and FixedSizeCrop. The image is fitted into `size` times a scale, with
    its proportions kept. Where it is larger than `size`, a window at a random place is cut; where
    it is smaller, it is filled below and on the right. Boxes are those of the masks in the window,
    and objects that lie outside are dropped. Rows and columns of the place are drawn separately;
    detectron2 draws one number for both.

    Attributes:
      size: height and width of the result.
      scale: range of the scale, drawn uniformly.
      fill: value outside the image; 128 in detectron2.
    """

    size: tuple[int, int]
    _: KW_ONLY
    scale: tuple[float, float] = (0.1, 2.0)
    fill: float = 128.0

    def __post_init__(self):
        _check_size_and_scale(self.size, self.scale)

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        check_objects(example)
        old, scale = np.array(example["image"].shape[:2]), rng.uniform(*self.scale)
        new = np.rint(old * np.min(scale * np.array(self.size) / old)).astype(int)
        return _resize_and_crop(example, new, self.size, rng, min_area=1, fill=self.fill)


@dataclass(frozen=True)
class RandomCrop:
    """Scales the image at random and cuts a window of a fixed size at a random place.

    Boxes are those of the masks in the window. An image smaller than the window lies at the top
    left, and the rest is filled.

    Attributes:
      size: height and width of the window.
      scale: range of the magnification, drawn uniformly.
      min_area: objects with fewer pixels in the window are dropped.
      fill: value outside the image.
    """

    size: tuple[int, int]
    _: KW_ONLY
    scale: tuple[float, float] = (1.0, 1.0)
    min_area: int = 1
    fill: float = 0.0

    def __post_init__(self):
        _check_size_and_scale(self.size, self.scale)
        if self.min_area < 1:
            raise ValueError(f"min_area must be at least 1 pixel, got {self.min_area}")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        check_objects(example)
        new = np.rint(rng.uniform(*self.scale) * np.array(example["image"].shape[:2])).astype(int)
        return _resize_and_crop(
            example, new, self.size, rng, min_area=self.min_area, fill=self.fill
        )


def check_objects(example: dict) -> None:
    """Raises ValueError for an example without objects."""
    missing = [key for key in OBJECTS if key not in example]
    if missing:
        raise ValueError(
            f"expected an example with {', '.join(OBJECTS)}; missing: {missing}. "
            "InstancesToObjects converts a map of instances"
        )


def _resize_and_crop(example, new, size, rng, *, min_area, fill) -> dict:
    """Resizes to `new` (height, width), crops or fills to `size`, and takes boxes from masks."""
    image = example["image"]
    new = tuple(np.maximum(new, 1).tolist())
    corner = rng.integers(0, np.maximum(np.subtract(new, size), 0), endpoint=True)
    scale = new[0] / image.shape[0], new[1] / image.shape[1]
    window = tuple(np.minimum(np.subtract(new, corner), size).tolist())
    masks = tuple(
        resample_mask(mask, scale=scale, corner=tuple(corner.tolist()), size=window)
        for mask in example["masks"]
    )
    seen = np.s_[corner[0] : corner[0] + window[0], corner[1] : corner[1] + window[1]]
    cut = resize_image(image, new)[seen]
    if window != tuple(size):
        filled = np.full((*size, image.shape[2]), fill, image.dtype)
        filled[: window[0], : window[1]] = cut
        cut = filled
    maps = {
        key: pad_map(key, resize_map(key, value, new)[seen], size)
        for key, value in maps_of(example).items()
    }
    moved = {**example, **maps, "image": cut, "masks": masks, "boxes": tight_boxes(masks)}
    return keep_objects(moved, np.array([mask.area >= min_area for mask in masks], bool))


def _check_size_and_scale(size, scale) -> None:
    if min(size) < 1:
        raise ValueError(f"size must be positive, got {size}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (lowest, highest) and positive, got {scale}")
