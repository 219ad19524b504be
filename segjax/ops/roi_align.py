"""RoIAlign: features of boxes, sampled bilinearly from one map or from a pyramid.

Mask R-CNN (He et al. 2017), section 3; what it leaves open follows torchvision's and detectron2's
kernels: where a sample may lie, and what it reads at the border.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.dtypes import sum_dtype

LevelRule = Literal["detectron2", "torchvision"]
BINS_IN_CACHE = 1568  # of 256 channels, 1.6 MB


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

    A sample up to one cell outside the map reads the nearest cell; one beyond that is 0.
    Gradients go to the features only; `jax.jvp` does not go through.

    Args:
      features: [batch, height, width, channels] of a float dtype.
      boxes: [batch, boxes, 4] as x_min, y_min, x_max, y_max, in pixels.
      output_size: bins, or rows and columns of bins.
      spatial_scale: of the features to the pixels of the boxes: 1 / stride.
      sampling_ratio: samples per bin and direction. 0 takes ⌈bin size in cells⌉ of each box
        (detectron2's default), no more than a box as large as the map needs. The time grows with
        the largest number of samples in the batch, the memory does not.
      aligned: cell i covers [i, i + 1] (detectron2). If not, its centre lies at i, half a cell off,
        and boxes are at least one cell wide and high (the first Detectron and torchvision's
        models).

    Returns:
      [batch, boxes, rows, columns, channels] of the features' dtype, summed in float32 at least.

    Raises:
      ValueError: a shape or an option is not one of these.
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
    """Computes each box's features by `roi_align`, from the level of a pyramid that fits its size.

    Args:
      pyramid: maps [batch, height, width, channels] of one dtype, the finest first.
      boxes: [batch, boxes, 4] in pixels.
      strides: of the maps in pixels: powers of two, each twice the one before.
      output_size, sampling_ratio, aligned: as for `roi_align`.
      level_rule: as for `pyramid_levels`.

    Returns:
      as `roi_align`.

    Raises:
      ValueError: as `roi_align`; or the strides do not belong to such a pyramid.
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
    """Computes the level k₀ + log₂(√area / 224), k₀ = 4, of each box, rounded down and clamped.

    Feature Pyramid Networks (Lin et al. 2017), equation 1. Level l has stride 2^l. The rules differ
    within rounding of a border: detectron2 adds 1e-8 to the ratio, torchvision 1e-6 to the
    logarithm.

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


def interpolation_matrices(start, length, *, bins: int, cells: int, sampling_ratio: int):
    """Computes the weight of each cell in each bin, along one axis of boxes.

    RoIAlign is this matrix of the rows times the map times that of the columns, transposed.

    Args:
      start, length: [...] of the boxes, in cells; the centre of cell i lies at i.
      bins, cells: of the output, of the map.
      sampling_ratio: as for `roi_align`.

    Returns:
      float32 [..., bins, cells].
    """
    along = jnp.full(start.shape, cells, jnp.int32)
    counts = _sample_counts(length, bins, along, sampling_ratio)
    shape = *start.shape, bins, cells
    index = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)

    def add_sample(sample, total):
        for cell, weight in _taps(sample, start, length, counts, bins, along):
            total += jnp.where(cell[..., None] == index, weight[..., None], 0)
        return total

    return lax.fori_loop(0, jnp.max(counts, initial=0), add_sample, jnp.zeros(shape, jnp.float32))


class _Grid(NamedTuple):
    batch: int
    sizes: tuple[tuple[int, int], ...]  # rows and columns of cells of each level
    bins: tuple[int, int]
    sampling_ratio: int


def _align(maps, boxes, levels, scales, output_size, sampling_ratio, aligned):
    bins = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(bins) != 2 or min(bins) < 1:
        raise ValueError(f"output_size is one or two positive numbers; got {output_size}")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio is positive, or 0 for adaptive; got {sampling_ratio}")
    batch, channels = maps[0].shape[0], maps[0].shape[-1]
    if boxes.ndim != 3 or boxes.shape[0] != batch or boxes.shape[2] != 4:
        raise ValueError(f"{batch} images need boxes [{batch}, boxes, 4]; got {boxes.shape}")
    grid = _Grid(batch, tuple(x.shape[1:3] for x in maps), bins, sampling_ratio)
    corners = lax.stop_gradient(boxes).astype(jnp.float32) * scales[..., None]
    low, high = corners[..., 1::-1], corners[..., :1:-1]  # as y, x
    start = low - (0.5 if aligned else 0.0)
    length = high - low if aligned else jnp.maximum(high - low, 1)
    cells = jnp.concatenate([x.reshape(batch, -1, channels) for x in maps], axis=1)
    return _pool(grid, cells, start, length, levels)


def _sample_counts(length, bins, cells, sampling_ratio):
    """Samples per bin, int32 [...]."""
    if sampling_ratio:
        return jnp.full(length.shape, sampling_ratio, jnp.int32)
    # The limit keeps the loop over the samples finite for a box that is not.
    most = jnp.ceil((cells.astype(jnp.float32) + 1) / bins)
    return jnp.clip(jnp.ceil(length / bins), 0, most).astype(jnp.int32)


def _touches(position, cells):
    """Whether a sample is at most one cell outside of the map."""
    return (position >= -1) & (position <= cells.astype(jnp.float32))


def _taps(sample, start, length, counts, bins, cells):
    """The two cells that one sample of each bin reads, [..., bins], and their shares of the bin."""
    index = lax.broadcasted_iota(jnp.float32, (*start.shape, bins), start.ndim)
    start, length, counts, cells = (x[..., None] for x in (start, length, counts, cells))
    bin_size, divisor = length / bins, jnp.maximum(counts, 1).astype(jnp.float32)
    position = start + index * bin_size + (sample.astype(jnp.float32) + 0.5) * (bin_size / divisor)
    reads = _touches(position, cells) & (sample < counts)
    position = jnp.clip(position, 0, (cells - 1).astype(jnp.float32))
    low = jnp.floor(position)
    beyond = position - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, cells - 1)
    weights = (jnp.where(reads, weight / divisor, 0) for weight in (1 - beyond, beyond))
    return list(zip((low, high), weights, strict=True))


def _over_samples(grid, start, length, levels, add_tap, total):
    """Folds `add_tap(total, cells, weights)` over the four taps of each sample of the bins.

    Cells are positions in the maps of all images, one after the other; they and the weights are
    [batch, boxes, rows, columns]. One sample of all boxes at a time: no array has an axis of them.
    """
    sizes = jnp.asarray(grid.sizes, jnp.int32)
    areas = [height * width for height, width in grid.sizes]
    offsets = jnp.asarray(list(itertools.accumulate(areas, initial=0))[:-1], jnp.int32)
    images = jnp.arange(grid.batch, dtype=jnp.int32)[:, None] * sum(areas)
    origin, widths = (offsets[levels] + images)[..., None], sizes[levels, 1][..., None]
    axes = []
    for axis, bins in enumerate(grid.bins):
        extent, cells = (start[..., axis], length[..., axis]), sizes[levels, axis]
        counts = _sample_counts(extent[1], bins, cells, grid.sampling_ratio)
        axes.append((*extent, counts, bins, cells))
    most = [jnp.max(counts, initial=0) for _, _, counts, _, _ in axes]

    def add_sample(index, total):
        samples = index // most[1], index % most[1]
        rows, columns = (_taps(n, *axis) for n, axis in zip(samples, axes, strict=True))
        for (row, row_weight), (column, column_weight) in itertools.product(rows, columns):
            positions = (origin + row * widths)[..., :, None] + column[..., None, :]
            weights = row_weight[..., :, None] * column_weight[..., None, :]
            total = add_tap(total, positions, weights)
        return total

    return lax.fori_loop(0, most[0] * most[1], add_sample, total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(grid, cells, start, length, levels):
    """[batch, cells of all levels, channels] → [batch, boxes, rows, columns, channels]."""
    flat = cells.reshape(-1, cells.shape[-1])

    def add_tap(total, positions, weights):
        read = flat.at[positions].get(mode="clip").astype(total.dtype)
        return total + read * weights[..., None].astype(total.dtype)

    shape = *start.shape[:2], *grid.bins, cells.shape[-1]
    total = jnp.zeros(shape, sum_dtype(cells))
    return _over_samples(grid, start, length, levels, add_tap, total).astype(cells.dtype)


def _pool_forward(grid, cells, start, length, levels):
    return _pool(grid, cells, start, length, levels), (start, length, levels)


def _pool_backward(grid, geometry, gradient):
    # Scatters on GPUs add in no fixed order: no run could be repeated bit for bit. On CPU products
    # are much slower. Both are the same sums.
    cpu, default = (
        functools.partial(f, grid) for f in (_scattered_gradient, _gradient_of_products)
    )
    return lax.platform_dependent(gradient, *geometry, cpu=cpu, default=default), None, None, None


_pool.defvjp(_pool_forward, _pool_backward)


def _scattered_gradient(grid, gradient, start, length, levels):
    """Adds each tap's share of a few boxes' gradients to the cells, while they are in the cache."""
    dtype, number = sum_dtype(gradient), gradient.shape[1]
    chunk = max(BINS_IN_CACHE // (grid.batch * grid.bins[0] * grid.bins[1]), 1)
    chunks = max(-(-number // chunk), 1)
    chunk = -(-number // chunks)  # as equal as can be
    arrays = [
        jnp.pad(x, [(0, 0), (0, chunks * chunk - number)] + [(0, 0)] * (x.ndim - 2))
        for x in (gradient, start, length, levels)
    ]

    def add_chunk(index, total):
        gradient, *geometry = (
            lax.dynamic_slice_in_dim(x, index * chunk, chunk, axis=1) for x in arrays
        )
        wide = gradient.astype(dtype)

        def add_tap(total, positions, weights):
            return total.at[positions].add(wide * weights[..., None].astype(dtype))

        return _over_samples(grid, *geometry, add_tap, total)

    cells = grid.batch * sum(height * width for height, width in grid.sizes)
    zeros = jnp.zeros((cells, gradient.shape[-1]), dtype)
    total = lax.fori_loop(0, chunks, add_chunk, zeros)
    return total.reshape(grid.batch, -1, gradient.shape[-1]).astype(gradient.dtype)


def _gradient_of_products(grid, gradient, start, length, levels):
    """Sums rowsᵀ · gradient · columns over the boxes, at JAX's default precision of products."""
    dtype = sum_dtype(gradient)
    chunk = min(64, gradient.shape[1]) or 1  # boxes; with 64, 200 MB for an image of COCO's size

    def in_chunks(x):
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)

    def of_level(level, size):
        def add_chunk(total, boxes):
            gradient, start, length, levels = boxes
            ratio = grid.sampling_ratio
            extents = zip(*(jnp.moveaxis(x, -1, 0) for x in (start, length)), strict=True)
            rows, columns = (
                interpolation_matrices(*extent, bins=bins, cells=cells, sampling_ratio=ratio)
                for extent, bins, cells in zip(extents, grid.bins, size, strict=True)
            )
            rows = jnp.where((levels == level)[..., None, None], rows, 0).astype(dtype)
            stretched = jnp.einsum("bnhy,bnhwc->bynwc", rows, gradient.astype(dtype))
            return total + jnp.einsum("bnwx,bynwc->byxc", columns.astype(dtype), stretched), None

        zeros = jnp.zeros((grid.batch, *size, gradient.shape[-1]), dtype)
        chunks = [in_chunks(x) for x in (gradient, start, length, levels)]
        total, _ = lax.scan(add_chunk, zeros, chunks)
        return total.reshape(grid.batch, -1, gradient.shape[-1])

    parts = [of_level(level, size) for level, size in enumerate(grid.sizes)]
    return jnp.concatenate(parts, axis=1).astype(gradient.dtype)
