"""Pastes masks, which are predicted in the frames of their boxes, into the image.

Two systems paste differently, which affects their published numbers:

- "detectron2" samples the mask bilinearly at the centres of the image's pixels. The mask is zero
  outside its frame (`paste_masks_in_image` in detectron2/layers/mask_ops.py).
- "torchvision" pads the mask with zeros and enlarges its box in proportion. The box is rounded to
  whole pixels towards zero and gains one pixel on the right and below. The mask is resized to this
  box (`paste_masks_in_image` in torchvision/models/detection/roi_heads.py).
"""

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np

from segjax.coco import run_lengths as rle

PasteRule = Literal["detectron2", "torchvision"]
_NO_MATRIX: Any = None  # `cv2.gemm` adds no third matrix; its annotations do not allow for that


def paste(
    probabilities: np.ndarray, box: np.ndarray, size: Sequence[int], *, rule: PasteRule
) -> np.ndarray:
    """Resamples the mask of one box over an image.

    Args:
      probabilities: [h, w] in the frame of the box, which is divided into h · w equal cells.
      box: [4]; an empty box has an empty mask.
      size: height and width of the image.
      rule: the system that the model follows; see above.

    Returns:
      Probabilities, float32 [height, width], zero beyond the box. With "detectron2" they fade out
      over half a mask pixel beyond the box, where they are below 0.5.

    Raises:
      ValueError: a wrong shape or rule, or a box that is not finite.
    """
    probabilities, boxes = _checked(probabilities[None], np.asarray(box)[None], rule)
    room = np.empty(size[0] * size[1], np.float32)
    top, left, window = _window(probabilities[0], boxes[0], size, rule, threshold=0.0, room=room)
    image = np.zeros(tuple(size), np.float32)
    image[top : top + window.shape[1], left : left + window.shape[0]] = window.T
    return image


def paste_to_rle(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    size: Sequence[int],
    *,
    rule: PasteRule,
    threshold: float = 0.5,
) -> list[dict]:
    """Pastes masks and encodes the pixels of at least `threshold` as COCO's run lengths.

    Each mask is computed around its box only.

    Args:
      probabilities: [d, h, w] in the frames of the boxes.
      boxes: [d, 4]; an empty box has an empty mask.
      size: height and width of the image.
      rule: the system that the model follows; see above.
      threshold: above 0.

    Returns:
      {"size": [height, width], "counts": str} for each mask.

    Raises:
      ValueError: a wrong shape or rule, a threshold of 0 or less, or a box that is not finite.
    """
    height, width = map(int, size)
    return [
        rle.encode(mask, size=(height, width), top=top, left=left)
        for top, left, mask in paste_to_masks(
            probabilities, boxes, (height, width), rule=rule, threshold=threshold
        )
    ]


def paste_to_masks(
    probabilities: np.ndarray,
    boxes: np.ndarray,
    size: Sequence[int],
    *,
    rule: PasteRule,
    threshold: float = 0.5,
) -> list[tuple[int, int, np.ndarray]]:
    """Pastes masks; returns the pixels of at least `threshold` around each box.

    Arguments and errors are those of `paste_to_rle`.

    Returns:
      (top, left, bool [h, w]) for each mask; all other pixels of the image are below the threshold.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, found {threshold}")
    height, width = map(int, size)
    probabilities, boxes = _checked(probabilities, boxes, rule)
    # Reused for all masks: new memory costs more than the computation.
    room = np.empty(height * width, np.float32)
    masks = []
    for mask, box in zip(probabilities, boxes, strict=True):
        top, left, window = _window(mask, box, (height, width), rule, threshold, room)
        masks.append((top, left, (window >= threshold).T))
    return masks


def _checked(probabilities, boxes, rule) -> tuple[np.ndarray, np.ndarray]:
    if rule not in ("detectron2", "torchvision"):
        raise ValueError(f'rule must be "detectron2" or "torchvision", not {rule!r}')
    probabilities = np.asarray(probabilities, np.float32)
    boxes = np.asarray(boxes, np.float32)
    if probabilities.ndim != 3 or boxes.shape != (len(probabilities), 4):
        raise ValueError(
            f"expected masks [d, h, w] and boxes [d, 4], found {probabilities.shape} and "
            f"{boxes.shape}"
        )
    if not np.isfinite(boxes).all():
        raise ValueError(f"expected finite boxes, found {boxes[~np.isfinite(boxes).all(1)][0]}")
    return probabilities, boxes


def _window(mask, box, size, rule, threshold, room) -> tuple[int, int, np.ndarray]:
    """Returns (top, left, probabilities [width, height]) of what can reach the threshold."""
    (x_min, y_min, x_max, y_max), (height, width) = box, size
    if not (x_max > x_min and y_max > y_min):
        return 0, 0, np.zeros((0, 0), np.float32)
    if rule == "detectron2":
        top, rows = _sampling(y_min, y_max, mask.shape[0], height, threshold)
        left, columns = _sampling(x_min, x_max, mask.shape[1], width, threshold)
    else:
        mask = np.pad(mask, 1)
        top, rows = _resizing(y_min, y_max, mask.shape[0], height)
        left, columns = _resizing(x_min, x_max, mask.shape[1], width)
    window = room[: len(columns) * len(rows)].reshape(len(columns), len(rows))
    if window.size:
        # Run lengths go down the columns, so columns are stored one after the other. NumPy would
        # start threads for so small a product, which costs more than it gains.
        across = cv2.gemm(columns, mask, 1, _NO_MATRIX, 0, flags=cv2.GEMM_2_T)
        cv2.gemm(across, rows, 1, _NO_MATRIX, 0, dst=window, flags=cv2.GEMM_2_T)
    return top, left, window


def _sampling(low, high, count, side, threshold) -> tuple[int, np.ndarray]:
    """Returns detectron2's first pixel on an axis, and mask weights [pixels, count]."""
    low, high = float(low), float(high)
    step = (high - low) / count
    # Beyond the box, values fall from half the border's value to zero within half a step.
    reach = max(0.0, 0.5 - threshold) * step
    first = min(max(0, int(np.ceil(low - reach - 0.5))), side)
    end = min(max(first, int(np.floor(high + reach - 0.5)) + 1), side)
    position = (np.arange(first, end) + 0.5 - low) / step - 0.5
    return first, _bilinear(np.floor(position), position, count)


def _resizing(low, high, padded_count, side) -> tuple[int, np.ndarray]:
    """Returns the same for torchvision and a padded mask; float32 rounding decides the pixels."""
    centre, half = (high + low) * np.float32(0.5), (high - low) * np.float32(0.5)
    half *= np.float32(padded_count / (padded_count - 2))
    low, high = int(centre - half), int(centre + half)
    length = max(high - low + 1, 1)
    first, end = min(max(low, 0), side), max(min(high + 1, side), 0)
    places = np.arange(first, max(first, end)) - low
    position = np.clip((places + 0.5) * padded_count / length - 0.5, 0, padded_count - 1)
    return first, _bilinear(np.floor(position), position, padded_count)


def _bilinear(before, position, count) -> np.ndarray:
    """Computes weights [positions, count] of linear interpolation; cells outside are 0."""
    weights = np.zeros((len(position), count), np.float32)
    rows, before = np.arange(len(position)), before.astype(np.int64)
    for index, weight in (
        (before, before + 1 - position),
        (before + 1, position - before),
    ):
        inside = (index >= 0) & (index < count)
        weights[rows[inside], index[inside]] = weight[inside]
    return weights
