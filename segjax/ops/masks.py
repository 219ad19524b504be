"""Masks in the frames of their boxes: targets for the mask head, and pasting into the image.

All resampling here is separable: a matrix for the rows times the mask times one for the columns.
"""

from typing import Literal

import chex
import jax.numpy as jnp
from jax import lax

from segjax.ops.roi_align import interpolation_matrices

PasteRule = Literal["detectron2", "torchvision"]


def targets_from_images(masks, boxes, matched, *, size: int = 28, aligned: bool, binary: bool):
    """Computes what the mask head should predict, from masks of the whole image.

    RoIAlign with adaptive sampling (`roi_align`, `sampling_ratio=0`) of each box's mask:
    torchvision's `project_masks_on_boxes` with neither option, `BitMasks.crop_and_resize` of
    detectron2 with both.

    Args:
      masks: [masks, height, width], 0 or 1.
      boxes: [boxes, 4] as x_min, y_min, x_max, y_max, in pixels.
      matched: int32 [boxes], the mask of each box.
      size: of the targets.
      aligned: as for `roi_align`.
      binary: whether averages of a half and more become 1 and others 0, or stay as they are.

    Returns:
      float32 [boxes, size, size].
    """
    chex.assert_rank(masks, 3, custom_message="masks")
    _check_matched(boxes, matched)
    masks = jnp.asarray(masks)
    low, high = _borders(boxes)
    start = low - (0.5 if aligned else 0.0)
    length = high - low if aligned else jnp.maximum(high - low, 1)
    rows, columns = (
        interpolation_matrices(
            start[axis], length[axis], bins=size, cells=masks.shape[1 + axis], sampling_ratio=0
        )
        for axis in (0, 1)
    )

    def target(operands):
        row, column, index = operands
        return _resample(row, masks[index].astype(jnp.float32), column)

    # A few boxes at a time: the masks of all of them would be gigabytes.
    targets = lax.map(target, (rows, columns, matched), batch_size=8)
    return _from_half(targets) if binary else targets


def targets_from_boxes(masks, mask_boxes, boxes, matched, *, size: int = 28, binary: bool = True):
    """Computes what the mask head should predict, from masks in the frames of their own boxes.

    The target is the share of each target cell that the mask covers, with the mask taken as uniform
    within each of its own cells. With masks of 112 × 112 the mean IoU with the targets of
    `targets_from_images` (aligned, binary) is 0.998 for ellipses of 20 pixels and more, 0.98 for 8
    to 16 pixels.

    Args:
      masks: uint8 [masks, m, m], the coverage of each cell from 0 to 255; the cells of row i cover
        the i-th m-th of the box's height.
      mask_boxes: [masks, 4] in pixels; the masks are zero outside.
      boxes: [boxes, 4], the frames of the targets.
      matched: int32 [boxes], the mask of each box.
      size: of the targets.
      binary: whether a coverage of a half and more becomes 1 and others 0, or stays as it is.

    Returns:
      float32 [boxes, size, size]; zeros where one of the boxes is empty.
    """
    chex.assert_rank(masks, 3, custom_message="masks")
    chex.assert_type(masks, jnp.uint8, custom_message="masks")
    chex.assert_shape(mask_boxes, (masks.shape[0], 4), custom_message="mask_boxes")
    _check_matched(boxes, matched)
    masks = jnp.asarray(masks)
    frames, mask_frames = _borders(boxes), _borders(jnp.asarray(mask_boxes)[matched])
    rows, columns = (
        _overlaps(*(x[axis] for x in (*frames, *mask_frames)), size, cells)
        for axis, cells in enumerate(masks.shape[1:])
    )
    targets = _resample(rows, masks[matched].astype(jnp.float32) / 255, columns)
    return _from_half(targets) if binary else targets


def paste_masks(masks, boxes, *, size: tuple[int, int], rule: PasteRule):
    """Resamples masks that were predicted in the frames of their boxes over the image.

    "detectron2" samples the mask at the centres of the image's pixels, and it is zero outside of
    its frame. "torchvision" gives the mask a border of zeros and the box one in proportion, cuts
    the box to whole pixels towards zero, adds a pixel to its width and height, and resizes the mask
    to it. Masks of empty boxes are zeros.

    Args:
      masks: [masks, h, w], probabilities; row i covers the i-th h-th of the box's height.
      boxes: [masks, 4] as x_min, y_min, x_max, y_max, in pixels.
      size: height and width of the image.
      rule: of the system whose model this is.

    Returns:
      float32 [masks, height, width]. 100 masks of 800 × 1344 pixels are 430 MB.

    Raises:
      ValueError: the rule is not one of these.
    """
    weights = {"detectron2": _sampling, "torchvision": _resizing}.get(rule)
    if weights is None:
        raise ValueError(f"paste rule {rule!r} is not 'detectron2' or 'torchvision'")
    chex.assert_rank(masks, 3, custom_message="masks")
    chex.assert_shape(boxes, (masks.shape[0], 4), custom_message="boxes")
    chex.assert_equal(len(size), 2, custom_message="size")
    low, high = _borders(boxes)
    rows, columns = (
        jnp.where(
            (high > low)[axis, :, None, None],
            weights(low[axis], high[axis], masks.shape[1 + axis], size[axis]),
            0,
        )
        for axis in (0, 1)
    )
    return _resample(rows, masks.astype(jnp.float32), columns)


def _check_matched(boxes, matched):
    """Asserts boxes [boxes, 4] and the index of each one's mask."""
    chex.assert_shape(boxes, (None, 4), custom_message="boxes")
    chex.assert_shape(matched, (boxes.shape[0],), custom_message="matched")
    chex.assert_type(matched, int, custom_message="matched")


def _borders(boxes):
    """Minima and maxima, each float32 [2, ...] of (y, x)."""
    x_min, y_min, x_max, y_max = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    return jnp.stack([y_min, x_min]), jnp.stack([y_max, x_max])


def _resample(rows, masks, columns):
    """rows · mask · columnsᵀ, of matrices along the last two axes."""
    # Highest: GPUs and TPUs would round float32 to 10 or 8 bits of mantissa.
    narrow = jnp.matmul(masks, columns.swapaxes(-1, -2), precision=lax.Precision.HIGHEST)
    return jnp.matmul(rows, narrow, precision=lax.Precision.HIGHEST)


def _from_half(targets):
    # Edges of masks often halve a cell exactly, and the sums then miss the half by rounding.
    return (targets >= 0.5 - 1e-5).astype(jnp.float32)


def _index(shape, axis):
    return lax.broadcasted_iota(jnp.float32, shape, axis)


def _overlaps(low, high, mask_low, mask_high, bins, cells):
    """The part of each bin that each cell of the mask covers, [boxes, bins, cells]."""
    low, length, mask_low, mask_length = (
        x[:, None, None] for x in (low, high - low, mask_low, mask_high - mask_low)
    )
    exist = (length > 0) & (mask_length > 0)
    scale = cells / jnp.where(exist, mask_length, 1)
    bin_size = jnp.where(exist, scale * length, 1) / bins  # in cells
    shape = len(low), bins, cells
    first = (low - mask_low) * scale + _index(shape, 1) * bin_size
    cell = _index(shape, 2)
    overlap = jnp.minimum(first + bin_size, cell + 1) - jnp.maximum(first, cell)
    return jnp.where(exist, jnp.maximum(overlap, 0) / bin_size, 0)


def _sampling(low, high, cells, pixels):
    """Detectron2's weight of each cell in each pixel, [masks, pixels, cells]."""
    low, high = low[:, None, None], high[:, None, None]
    shape = len(low), pixels, cells
    position = (_index(shape, 1) + 0.5 - low) / (high - low) * cells - 0.5
    return jnp.maximum(1 - jnp.abs(position - _index(shape, 2)), 0)


def _resizing(low, high, cells, pixels):
    """Torchvision's weight of each cell in each pixel, [masks, pixels, cells]."""
    low, high = low[:, None, None], high[:, None, None]
    padded = cells + 2
    centre, half = (high + low) * 0.5, (high - low) * 0.5 * (padded / cells)
    first, last = jnp.trunc(centre - half), jnp.trunc(centre + half)
    count = jnp.maximum(last - first + 1, 1)
    shape = len(low), pixels, cells
    place = _index(shape, 1) - first
    position = jnp.clip((place + 0.5) * (padded / count) - 0.5, 0, padded - 1)
    # The border's cells, at 0 and padded − 1, are zero and left out.
    weights = jnp.maximum(1 - jnp.abs(position - (_index(shape, 2) + 1)), 0)
    return jnp.where((place >= 0) & (place < count), weights, 0)
