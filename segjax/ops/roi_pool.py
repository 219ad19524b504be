"""RoIPool and RoIWarp, the predecessors of RoIAlign, for the comparison in Mask R-CNN's table 2c.

Both round a box to whole cells of the features, which shifts it by up to half a cell.
"""

import functools
from typing import Literal

import chex
import jax.numpy as jnp
from jax import lax

from segjax.ops.dtypes import sum_dtype
from segjax.ops.roi_align import roi_align


def roi_pool(features, boxes, *, output_size: int | tuple[int, int], spatial_scale: float):
    """Computes the maximum of the features in each bin of each box, rounded to whole cells.

    Fast R-CNN (Girshick 2015), section 2.1, as in its code. A box covers the cells from its rounded
    minimum to its rounded maximum, both included. A bin covers every cell that it touches, so bins
    may share a row of cells. A bin that lies wholly outside the map is 0. Among equal cells, the
    first gets the gradient. The gradient is a scatter, which GPUs add in no fixed order unless XLA
    is told to.

    Args:
      features: [batch, height, width, channels].
      boxes: [batch, boxes, 4] as x_min, y_min, x_max, y_max, in pixels.
      output_size: bins, or rows and columns of bins.
      spatial_scale: cells per pixel of the boxes: 1 / stride.

    Returns:
      [batch, boxes, rows, columns, channels] of the same dtype.
    """
    _check(features, boxes, output_size)
    batch, height, width, channels = features.shape
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    start, end = _whole_cells(boxes, spatial_scale)
    rows = _bin_cells(start[..., 1], end[..., 1], bins[0], height)
    columns = _bin_cells(start[..., 0], end[..., 0], bins[1], width)
    cells = features.reshape(batch, height * width, channels)
    fixed = lax.stop_gradient(cells)
    shape = batch, boxes.shape[1], *bins, channels

    def read(positions):
        """Reads cells [batch, boxes, rows, columns, 1 or channels], in all channels."""
        flat = positions.reshape(batch, -1, positions.shape[-1])
        return jnp.take_along_axis(fixed, flat, axis=1, mode="clip").reshape(shape)

    most = [jnp.max(last - first, initial=0) for first, last in (rows, columns)]

    def compare(index, best):
        value, position = best
        row, column = rows[0] + index // most[1], columns[0] + index % most[1]
        exists = (row < rows[1])[..., :, None] & (column < columns[1])[..., None, :]
        here = (row[..., :, None] * width + column[..., None, :])[..., None]
        found = read(here)
        larger = exists[..., None] & ((found > value) | (position < 0))
        return jnp.where(larger, found, value), jnp.where(larger, here, position)

    nothing = jnp.zeros(shape, features.dtype), jnp.full(shape, -1, jnp.int32)
    _, position = lax.fori_loop(0, most[0] * most[1], compare, nothing)
    # The search has no gradient; reading the cells that it found has. Many boxes read a cell, and
    # their gradients are added in the dtype that is read.
    flat = jnp.maximum(position, 0).reshape(batch, -1, channels)
    wide = cells.astype(sum_dtype(cells))
    largest = jnp.take_along_axis(wide, flat, axis=1, mode="clip").reshape(shape)
    return jnp.where(position < 0, 0, largest.astype(features.dtype))


def roi_warp(
    features,
    boxes,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    aggregation: Literal["max", "average"] = "max",
):
    """Computes each box's features from bilinear samples of the box rounded to whole cells.

    RoIWarp of Dai et al. (2016), section 3.2, as Mask R-CNN, section 3, describes it. The box is
    rounded as in `roi_pool` and resampled bilinearly, with two samples per bin and direction, which
    are then pooled. The papers leave open where the samples lie. Here they are those of `roi_align`
    with `sampling_ratio=2, aligned=True`, so that only the rounding differs.

    Args:
      features, boxes, output_size, spatial_scale: as for `roi_pool`.
      aggregation: how the four samples of a bin are pooled; table 2c has both.

    Returns:
      [batch, boxes, rows, columns, channels] of the same dtype.

    Raises:
      ValueError: `aggregation` is neither "max" nor "average".
    """
    if aggregation not in ("max", "average"):
        raise ValueError(f"aggregation {aggregation!r} is not 'max' or 'average'")
    _check(features, boxes, output_size)
    rows, columns = (output_size,) * 2 if isinstance(output_size, int) else output_size
    start, end = _whole_cells(boxes, spatial_scale)
    samples = roi_align(
        features,
        jnp.concatenate([start, end], axis=-1).astype(jnp.float32),
        output_size=(2 * rows, 2 * columns),
        spatial_scale=1.0,
        sampling_ratio=1,
        aligned=True,
    )
    batch, number, *_, channels = samples.shape
    samples = samples.reshape(batch, number, rows, 2, columns, 2, channels)
    if aggregation == "average":
        return samples.mean((3, 5))
    # Take the maximum pair by pair. The gradient of `max` divides by the number of samples equal to
    # the maximum. XLA may recompute the samples with other rounding; then none is equal, and the
    # gradient is NaN.
    four = [samples[:, :, :, i, :, j] for i in range(2) for j in range(2)]
    return functools.reduce(jnp.maximum, four)


def _check(features, boxes, output_size):
    """Checks the shapes of the arguments of `roi_pool` and `roi_warp`."""
    chex.assert_rank(features, 4, custom_message="features")
    chex.assert_shape(boxes, (features.shape[0], None, 4), custom_message="boxes")
    if not isinstance(output_size, int):
        chex.assert_equal(len(output_size), 2, custom_message="output_size")


def _whole_cells(boxes, spatial_scale):
    """Returns each box's first cell and the one after its last: int32 [batch, boxes, 2] as x, y."""
    corners = lax.stop_gradient(boxes).astype(jnp.float32) * spatial_scale
    # Round halves away from zero, as C does, and not to even numbers.
    corners = (jnp.sign(corners) * jnp.floor(jnp.abs(corners) + 0.5)).astype(jnp.int32)
    start = corners[..., :2]
    return start, jnp.maximum(corners[..., 2:], start) + 1


def _bin_cells(start, end, bins, cells):
    """Returns each bin's first cell and the one after its last: int32 [batch, boxes, bins]."""
    index = lax.broadcasted_iota(jnp.int32, (*start.shape, bins), start.ndim)
    start, length = start[..., None], (end - start)[..., None]
    first = start + index * length // bins
    last = start + ((index + 1) * length + bins - 1) // bins
    return jnp.clip(first, 0, cells), jnp.clip(last, 0, cells)
