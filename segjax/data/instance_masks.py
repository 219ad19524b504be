"""Masks of instances, each stored as the window of the image that it covers."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from segjax.coco.masks import draw_segmentation
from segjax.labels import IGNORE_LABEL

_DENSE_IDS = 1 << 18  # with lower ids, SciPy's table of all ids up to the highest is cheap


@dataclass(frozen=True, eq=False)
class CroppedMask:
    """A mask that is zero outside a window of the image.

    The window is the tight box of the mask. An empty mask has pixels of shape (0, 0).

    Attributes:
      top, left: the first row and column of the window in the image.
      pixels: the window, bool [height, width].
    """

    top: int
    left: int
    pixels: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The tight box [x_min, y_min, x_max, y_max]."""
        height, width = self.pixels.shape
        return self.left, self.top, self.left + width, self.top + height

    @property
    def area(self) -> int:
        """The number of pixels of the mask."""
        return int(np.count_nonzero(self.pixels))


EMPTY = CroppedMask(0, 0, np.zeros((0, 0), bool))


def crop_mask(pixels: np.ndarray, *, top: int = 0, left: int = 0) -> CroppedMask:
    """Crops a mask to its tight box.

    Args:
      pixels: bool [H, W].
      top, left: the row and column of the image at which `pixels` begins.
    """
    pixels = np.ascontiguousarray(pixels, bool)
    x, y, width, height = cv2.boundingRect(pixels.view(np.uint8)) if pixels.size else (0,) * 4
    if not width:
        return EMPTY
    return CroppedMask(top + y, left + x, pixels[y : y + height, x : x + width].copy())


def mask_from_segmentation(segmentation: Sequence | dict, size: tuple[int, int]) -> CroppedMask:
    """Draws a COCO "segmentation" (polygons or run lengths) for an image of `size` (H, W).

    Raises:
      ValueError: the segmentation is malformed or has another size.
    """
    return crop_mask(draw_segmentation(segmentation, size))


def masks_from_instances(instances: np.ndarray) -> tuple[np.ndarray, tuple[CroppedMask, ...]]:
    """Splits a map of instances, int [H, W] with 0 = background, into masks.

    Returns:
      The ids in ascending order, int32 [n], and the mask of each.
    """
    if instances.min(initial=0) < 0:
        raise ValueError(f"instance ids must not be negative, found {instances.min()}")
    if instances.max(initial=0) < _DENSE_IDS:
        numbers, ids = instances, None
    else:
        ids, numbers = np.unique(np.append(instances, 0), return_inverse=True)
        numbers = numbers[:-1].reshape(instances.shape)
    windows = ndimage.find_objects(numbers)
    present = {number: window for number, window in enumerate(windows, 1) if window is not None}
    masks = tuple(
        CroppedMask(window[0].start, window[1].start, numbers[window] == number)
        for number, window in present.items()
    )
    present = np.array(list(present), np.int32)
    return present if ids is None else ids[present].astype(np.int32), masks


def tight_boxes(masks: Sequence[CroppedMask]) -> np.ndarray:
    """The tight box of each mask, float32 [n, 4]; zeros for an empty mask."""
    return np.array([mask.box for mask in masks], np.float32).reshape(-1, 4)


def coverage(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Computes the exact part of each cell of a grid that a mask covers.

    A pixel that lies partly in a cell counts in part. The mask is zero outside its window.

    Args:
      pixels: bool [h, w]; pixel (i, j) is the square from (i, j) to (i + 1, j + 1).
      rows: edges of the grid's rows, float [m + 1], ascending.
      columns: edges of the grid's columns, float [n + 1], ascending.

    Returns:
      float64 [m, n], from 0 to 1.
    """
    if not pixels.size:
        return np.zeros((len(rows) - 1, len(columns) - 1))
    # The sum over any rectangle follows from the summed-area table, which is bilinear in a pixel.
    sums = cv2.integral(np.ascontiguousarray(pixels).view(np.uint8), sdepth=cv2.CV_32S)
    sums = _between(_between(sums, rows).T, columns).T
    return np.diff(np.diff(sums, axis=0), axis=1) / np.outer(np.diff(rows), np.diff(columns))


def _between(table: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Interpolates the rows of a table [n, ...] linearly at positions clipped to 0..n − 1."""
    positions = np.clip(positions, 0, len(table) - 1)
    below = np.minimum(positions.astype(np.intp), len(table) - 2)
    part = (positions - below)[:, None]
    lower = table[below]
    return lower + part * (table[below + 1] - lower)


def resample_mask(
    mask: CroppedMask, *, scale: tuple[float, float], corner: tuple[int, int], size: tuple[int, int]
) -> CroppedMask:
    """Scales a mask and cuts a window out of the result.

    Args:
      mask: the mask in the original image.
      scale: factors of rows and columns.
      corner: top and left of the window, in pixels of the scaled image.
      size: height and width of the window.

    Returns:
      The mask in the window; empty if it lies outside.
    """
    left, top, right, bottom = mask.box
    (first, last), (start, stop) = (
        (max(int(np.floor(low * s)), edge), min(int(np.ceil(high * s)), edge + length))
        for low, high, s, edge, length in zip(
            (top, left), (bottom, right), scale, corner, size, strict=True
        )
    )
    if last <= first or stop <= start:
        return EMPTY
    if tuple(scale) == (1, 1):
        pixels = mask.pixels[first - top : last - top, start - left : stop - left]
    else:
        rows = np.arange(first, last + 1) / scale[0] - top
        columns = np.arange(start, stop + 1) / scale[1] - left
        pixels = coverage(mask.pixels, rows, columns) >= 0.5
    return crop_mask(pixels, top=first - corner[0], left=start - corner[1])


@dataclass(frozen=True)
class InstancesToObjects:
    """Transform: converts a map of instances to objects with classes, boxes and masks.

    "boxes" are the tight boxes and "areas" the numbers of mask pixels. The class of an object is
    the label of its pixels that are not ignored (255), or 1 if the example has no "labels".
    Objects are in the order of their ids. "crowd" is false unless the example already has it, as
    bool [n] in the same order. The result has no "labels" and no "instances".

    Raises ValueError if the pixels of an instance have several classes, none, or background.
    """

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        ids, masks = masks_from_instances(example["instances"])
        classes = np.ones(len(masks), np.int32)
        if "labels" in example:
            for place, (number, mask) in enumerate(zip(ids, masks, strict=True)):
                classes[place] = _class_of(mask, example["labels"], number)
        kept = {key: example[key] for key in example if key not in ("labels", "instances")}
        return {
            "crowd": np.zeros(len(masks), bool),
            **kept,
            "boxes": tight_boxes(masks),
            "classes": classes,
            "masks": masks,
            "areas": np.array([mask.area for mask in masks], np.float32),
        }


def _class_of(mask: CroppedMask, labels: np.ndarray, number: int) -> int:
    left, top, right, bottom = mask.box
    found = np.flatnonzero(np.bincount(labels[top:bottom, left:right][mask.pixels]))
    found = found[found != IGNORE_LABEL]
    if len(found) != 1 or found[0] == 0:
        raise ValueError(
            f"instance {number} at {mask.box} has labels {found.tolist()}; expected one class, "
            "not background (0)"
        )
    return int(found[0])
