"""RoIAlign: features of boxes, sampled bilinearly from one map or from a pyramid.

Mask R-CNN (He et al. 2017), section 3. The paper leaves open where samples may lie and what they
read at the border; there we follow the kernels of torchvision and detectron2.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.dtypes import sum_dtype
from segjax.ops.linear import apply, define_transposes, linear_operator
from segjax.ops.roi_align_samples import Grid, sample_counts, taps
from segjax.ops.roi_align_tiles import gradient_of_tiles

LevelRule = Literal["detectron2", "torchvision"]
BINS_IN_CACHE = 1568  # with 256 channels, 1.6 MB


def roi_align(
    features,
    boxes,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> jax.Array:
    """Computes each box's features: the averages of bilinear samples in a grid of bins.

    A sample up to one cell outside the map reads the nearest cell; a sample beyond that is 0. Only
    the features have a derivative, in forward and reverse mode.

    Args:
      features: [batch, height, width, channels] of a float dtype.
      boxes: [batch, boxes, 4] as x_min, y_min, x_max, y_max, in pixels.
      output_size: bins, or rows and columns of bins.
      spatial_scale: cells per pixel of the boxes: 1 / stride.
      sampling_ratio: samples per bin and direction. 0 takes ⌈bin size in cells⌉ for each box
        (detectron2's default), at most as many as a box of the map's size needs. The time grows
        with the largest number of samples in the batch; the memory does not.
      aligned: whether cell i covers [i, i + 1] (detectron2). Otherwise its centre is at i, which is
        half a cell off, and boxes are at least one cell wide and high (the first Detectron and
        torchvision's models).

    Returns:
      [batch, boxes, rows, columns, channels] of the features' dtype, summed in float32 at least.

    Raises:
      ValueError: a shape or an option is wrong.
    """
    chex.assert_rank(features, 4, custom_message="features")
    chex.assert_type(features, float, custom_message="features")
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    scales = jnp.full(boxes.shape[:2], spatial_scale, jnp.float32)
    return _align([features], boxes, levels, scales, output_size, sampling_ratio, aligned)


def multilevel_roi_align(
    pyramid: Sequence[jax.Array],
    boxes,
    *,
    strides: Sequence[int],
    output_size: int | tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    level_rule: LevelRule,
) -> jax.Array:
    """Computes each box's features by `roi_align`, on the pyramid level that fits the box's size.

    Args:
      pyramid: maps [batch, height, width, channels] of one dtype, the finest first.
      boxes: [batch, boxes, 4] in pixels.
      strides: the maps' strides in pixels: powers of two, each twice the one before.
      output_size, sampling_ratio, aligned: as for `roi_align`.
      level_rule: as for `pyramid_levels`.

    Returns:
      [batch, boxes, rows, columns, channels]; see `roi_align`.

    Raises:
      ValueError: as for `roi_align`, or the strides are not those of such a pyramid.
    """
    lowest = round(math.log2(strides[0])) if strides and strides[0] > 0 else 0
    if not strides or list(strides) != [2 ** (lowest + i) for i in range(len(strides))]:
        raise ValueError(f"strides are powers of two, each twice the one before; got {strides}")
    if len(pyramid) != len(strides):
        raise ValueError(f"{len(pyramid)} maps with {len(strides)} strides")
    highest = lowest + len(strides) - 1
    chex.assert_rank(pyramid, 4, custom_message="pyramid")
    batch, *_, channels = pyramid[0].shape
    chex.assert_shape(pyramid, (batch, None, None, channels), custom_message="pyramid")
    chex.assert_type(pyramid, pyramid[0].dtype, custom_message="pyramid")
    levels = pyramid_levels(boxes, lowest=lowest, highest=highest, rule=level_rule)
    scales = jnp.exp2(-levels.astype(jnp.float32))
    return _align(pyramid, boxes, levels - lowest, scales, output_size, sampling_ratio, aligned)


def pyramid_levels(boxes, *, lowest: int, highest: int, rule: LevelRule):
    """Computes each box's level ⌊k₀ + log₂(√area / 224)⌋ with k₀ = 4, clamped to the pyramid.

    Feature Pyramid Networks (Lin et al. 2017), equation 1. Level l has stride 2^l. The two rules
    differ only for boxes within rounding of a border between levels: detectron2 adds 1e-8 to the
    ratio, torchvision 1e-6 to the logarithm.

    Args:
      boxes: [..., 4] in pixels.

    Returns:
      int32 [...] in lowest..highest.
    """
    chex.assert_shape(boxes, (..., 4), custom_message="boxes")
    boxes = boxes.astype(jnp.float32)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    ratio = jnp.sqrt(jnp.maximum(area, 0)) / 224
    if rule == "detectron2":
        level = 4 + jnp.log2(ratio + 1e-8)
    elif rule == "torchvision":
        level = 4 + jnp.log2(ratio) + 1e-6
    else:
        raise ValueError(f"level rule {rule!r} is not 'detectron2' or 'torchvision'")
    return jnp.clip(jnp.floor(level), lowest, highest).astype(jnp.int32)


def _align(maps, boxes, levels, scales, output_size, sampling_ratio, aligned):
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"output_size is one or two positive numbers; got {output_size}")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio is positive, or 0 for adaptive; got {sampling_ratio}")
    batch, channels = maps[0].shape[0], maps[0].shape[-1]
    if boxes.ndim != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4:
        raise ValueError(f"{batch} images need boxes [{batch}, boxes, 4]; got {boxes.shape}")
    grid = Grid(batch, tuple(x.shape[1:3] for x in maps), bins, sampling_ratio)
    corners = lax.stop_gradient(boxes).astype(jnp.float32) * scales[..., None]
    low, high = corners[..., 1::-1], corners[..., :1:-1]  # as y, x
    start = low - (0.5 if aligned else 0.0)
    length = high - low if aligned else jnp.maximum(high - low, 1)
    cells = jnp.concatenate([x.reshape(batch, -1, channels) for x in maps], axis=1)
    return apply(_pooled, cells, start, length, levels, options=grid)


def _over_samples(grid, start, length, levels, add_tap, total):
    """Folds `add_tap(total, cells, weights)` over the four taps of each sample of the bins.

    Cells are positions in the concatenated maps of all images. Cells and weights are [batch, boxes,
    rows, columns]. The loop takes one sample of all boxes at a time, so no array has an axis of
    samples.
    """
    sizes = jnp.asarray(grid.sizes, jnp.int32)
    areas = [height * width for height, width in grid.sizes]
    offsets = jnp.asarray(list(itertools.accumulate(areas, initial=0))[:-1], jnp.int32)
    images = jnp.arange(grid.batch, dtype=jnp.int32)[:, None] * sum(areas)
    origin, widths = (offsets[levels] + images)[..., None], sizes[levels, 1][..., None]
    axes = []
    for axis, bins in enumerate(grid.bins):
        extent, cells = (start[..., axis], length[..., axis]), sizes[levels, axis]
        counts = sample_counts(extent[1], bins, cells, grid.sampling_ratio)
        axes.append((*extent, counts, bins, cells))
    most = [jnp.max(counts, initial=0) for _, _, counts, _, _ in axes]

    def add_sample(index, total):
        samples = index // most[1], index % most[1]
        rows, columns = (taps(n, *axis) for n, axis in zip(samples, axes, strict=True))
        for (row, row_weight), (column, column_weight) in itertools.product(rows, columns):
            positions = (origin + row * widths)[..., :, None] + column[..., None, :]
            weights = row_weight[..., :, None] * column_weight[..., None, :]
            total = add_tap(total, positions, weights)
        return total

    return lax.fori_loop(0, most[0] * most[1], add_sample, total)


def _pool(cells, start, length, levels, *, options):
    """Maps [batch, cells of all levels, channels] to [batch, boxes, rows, columns, channels]."""
    grid, flat = options, cells.reshape(-1, cells.shape[-1])

    def add_tap(total, positions, weights):
        read = flat.at[positions].get(mode="clip").astype(total.dtype)
        return total + read * weights[..., None].astype(total.dtype)

    shape = *start.shape[:2], *grid.bins, cells.shape[-1]
    total = jnp.zeros(shape, sum_dtype(cells))
    return _over_samples(grid, start, length, levels, add_tap, total).astype(cells.dtype)


def _scattered_gradient(gradient, start, length, levels, *, options):
    """Adds the gradients of a few boxes at a time to the cells, while they fit the cache."""
    grid, dtype, number = options, sum_dtype(gradient), gradient.shape[1]
    chunk = max(BINS_IN_CACHE // (grid.batch * grid.bins[0] * grid.bins[1]), 1)
    chunks = max(-(-number // chunk), 1)
    chunk = -(-number // chunks)  # chunks of nearly equal size
    arrays = [
        jnp.pad(x, [(0, 0), (0, chunks * chunk - number)] + [(0, 0)] * (x.ndim - 2))
        for x in (gradient, start, length, levels)
    ]

    def add_chunk(index, total):
        gradient, start, length, levels = (
            lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1) for x in arrays
        )
        wide = gradient.astype(dtype)

        def add_tap(total, positions, weights):
            return total.at[positions].add(wide * weights[..., None].astype(dtype))

        return _over_samples(grid, start, length, levels, add_tap, total)

    cells = grid.batch * sum(height * width for height, width in grid.sizes)
    zeros = jnp.zeros((cells, gradient.shape[-1]), dtype)
    total = lax.fori_loop(0, chunks, add_chunk, zeros)
    return total.reshape(grid.batch, -1, gradient.shape[-1]).astype(gradient.dtype)


_pooled = linear_operator("roi_align", cpu=_pool, default=_pool)
# Both forms compute the same sums. GPUs add a scatter in no fixed order, so a run could not be
# repeated bit for bit; on CPU, products are much slower.
_pooled_gradient = linear_operator(
    "roi_align_gradient", cpu=_scattered_gradient, default=gradient_of_tiles
)
define_transposes(_pooled, {0: (_pooled_gradient, (0, 1, 2, 3))}, 4)
define_transposes(_pooled_gradient, {0: (_pooled, (0, 1, 2, 3))}, 4)
