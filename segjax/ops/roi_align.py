"""RoIAlign: features of boxes, sampled bilinearly from one map or from a pyramid.

Mask R-CNN (He et al. 2017), section 3. The paper leaves open where samples may lie and what they
read at the border; there we follow the kernels of torchvision and detectron2.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.dtypes import sum_dtype
from segjax.ops.linear import apply, define_transposes, linear_operator

LevelRule = Literal["detectron2", "torchvision"]
BINS_IN_CACHE = 1568  # with 256 channels, 1.6 MB
TILE = 16  # cells
TILES_AT_ONCE = 64
BINS_OF_PRODUCT = 784  # that a product sums over: 16 boxes of 7 x 7 bins


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


def interpolation_matrices(start, length, index, *, bins, cells, sampling_ratio):
    """Computes the weights of some cells in each bin, along one axis of boxes.

    RoIAlign multiplies the map by the rows' matrix from the left, and by the columns' transposed
    matrix from the right.

    Args:
      start, length: [...], where boxes begin and how long they are, in cells; the centre of cell i
        is at i.
      index: int32 [..., n], the cells in question.
      bins: number of bins of the output.
      cells: int32 [...], numbers of cells of the maps.
      sampling_ratio: as for `roi_align`.

    Returns:
      float32 [..., bins, n].
    """
    counts = _sample_counts(length, bins, cells, sampling_ratio)

    def add_sample(sample, total):
        for cell, weight in _taps(sample, start, length, counts, bins, cells):
            total += jnp.where(cell[..., None] == index[..., None, :], weight[..., None], 0)
        return total

    total = jnp.zeros((*start.shape, bins, index.shape[-1]), jnp.float32)
    if sampling_ratio:  # unrolled, so that compilers fuse the samples
        return lax.fori_loop(0, sampling_ratio, add_sample, total, unroll=True)
    return lax.fori_loop(0, jnp.max(counts, initial=0), add_sample, total)


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
    return apply(_pooled, cells, start, length, levels, options=grid)


def _sample_counts(length, bins, cells, sampling_ratio):
    """Computes the number of samples per bin, int32 [...]."""
    if sampling_ratio:
        return jnp.full(length.shape, sampling_ratio, jnp.int32)
    # The limit keeps the loop over samples finite, even if a box is not.
    most = jnp.ceil((cells.astype(jnp.float32) + 1) / bins)
    return jnp.clip(jnp.ceil(length / bins), 0, most).astype(jnp.int32)


def _touches(position, cells):
    """Computes whether a sample is at most one cell outside the map."""
    return (position >= -1) & (position <= cells.astype(jnp.float32))


def _taps(sample, start, length, counts, bins, cells):
    """Returns the two cells that one sample of each bin reads, with their weights: [..., bins]."""
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


class _Tiles(NamedTuple):
    """Squares that cover all levels of all images; each field has an entry for each."""

    image: np.ndarray
    level: np.ndarray
    first: np.ndarray  # row and column of cells, [tiles, 2]


def _tiles(grid):
    """Lists the tiles by image, level, row and column."""
    firsts = [
        np.stack(np.mgrid[0:height:TILE, 0:width:TILE], axis=-1).reshape(-1, 2)
        for height, width in grid.sizes
    ]
    level = np.repeat(np.arange(len(firsts)), [len(x) for x in firsts])
    image = np.repeat(np.arange(grid.batch), len(level))
    fields = image, np.tile(level, grid.batch), np.tile(np.concatenate(firsts), (grid.batch, 1))
    return _Tiles(*(x.astype(np.int32) for x in fields))


def _boxes_of_tiles(tiles, grid, start, length, levels):
    """Computes which boxes may read a cell of each tile: bool [tiles, boxes]."""
    found = levels[tiles.image] == tiles.level[:, None]
    sizes = np.asarray(grid.sizes, np.int32)[tiles.level]
    end = start + length
    for axis in (0, 1):
        low, high = (x(start, end)[..., axis][tiles.image] for x in (jnp.minimum, jnp.maximum))
        cells, first = sizes[:, axis, None], tiles.first[:, axis, None]
        # One cell more at each end: samples that are off by rounding stay inside.
        low = jnp.clip(jnp.floor(low) - 1, 0, (cells - 1).astype(np.float32))
        high = jnp.clip(jnp.floor(high) + 2, 0, (cells - 1).astype(np.float32))
        found &= (low < (first + TILE).astype(np.float32)) & (high >= first.astype(np.float32))
    return found


def _gradient_of_tiles(gradient, start, length, levels, *, options):
    """Multiplies weights and gradients, for the boxes of each tile, a few boxes at a time.

    Products have the gradient's dtype, are summed in float32 at least, and have JAX's default
    precision. A box costs only the tiles that it reads, however long it is. Tiles with similarly
    many boxes are computed together, until the fullest of them has seen all its boxes.
    """
    grid, tiles, channels = options, _tiles(options), gradient.shape[-1]
    if not gradient.shape[1]:
        cells = sum(height * width for height, width in grid.sizes)
        return jnp.zeros((grid.batch, cells, channels), gradient.dtype)
    chunk = min(max(BINS_OF_PRODUCT // (grid.bins[0] * grid.bins[1]), 1), gradient.shape[1])
    sizes = jnp.asarray(grid.sizes, jnp.int32)
    reads = _boxes_of_tiles(tiles, grid, start, length, levels)
    # The number of boxes of a tile up to and including each box.
    ranks = jnp.cumsum(reads, axis=1, dtype=jnp.int32)
    counts = ranks[:, -1]
    order = jnp.argsort(-counts, stable=True)
    padded = jnp.pad(order, (0, -len(order) % TILES_AT_ONCE), mode="edge")

    def of_tiles(places):
        image, level, first = (jnp.asarray(x)[places] for x in tiles)
        rank, count = ranks[places], counts[places]
        # Both matrices have an entry for each cell of a tile, which fills a TPU's vectors.
        offsets = np.stack(np.divmod(np.arange(TILE**2, dtype=np.int32), TILE))
        cells = first.T[:, :, None] + offsets[:, None]

        def add_chunk(number, total):
            wanted = number * chunk + 1 + jnp.arange(chunk, dtype=jnp.int32)
            box = jnp.sum(rank[:, None] < wanted[None, :, None], axis=2, dtype=jnp.int32)
            box = jnp.minimum(box, gradient.shape[1] - 1)
            here = image[:, None], box  # [tiles, chunk]
            rows, columns = (
                interpolation_matrices(
                    start[here][..., axis],
                    length[here][..., axis],
                    jnp.broadcast_to(cell[:, None], (*box.shape, TILE**2)),
                    bins=grid.bins[axis],
                    cells=jnp.broadcast_to(sizes[level, axis][:, None], box.shape),
                    sampling_ratio=grid.sampling_ratio,
                ).astype(gradient.dtype)
                for axis, cell in enumerate(cells)
            )
            rows = jnp.where((wanted[None] <= count[:, None])[..., None, None], rows, 0)
            return total + jnp.einsum(
                "tnhwp,tnhwc->tpc",
                rows[..., :, None, :] * columns[..., None, :, :],
                gradient[here],
                preferred_element_type=total.dtype,
            )

        zeros = jnp.zeros((len(places), TILE**2, channels), sum_dtype(gradient))
        total = lax.fori_loop(0, -(-jnp.max(count) // chunk), add_chunk, zeros)
        return total.astype(gradient.dtype)

    computed = lax.map(of_tiles, padded.reshape(-1, TILES_AT_ONCE))
    strips = computed.reshape(-1, TILE, channels)  # one row of cells of a tile
    places = jnp.argsort(order).reshape(grid.batch, -1)
    parts, begin = [], 0
    for height, width in grid.sizes:
        down, across = -(-height // TILE), -(-width // TILE)
        place = places[:, begin : begin + down * across].reshape(grid.batch, down, 1, across)
        rows = place * TILE + jnp.arange(TILE, dtype=jnp.int32)[None, None, :, None]
        part = strips[rows.reshape(grid.batch, -1, across)[:, :height]]
        part = part.reshape(grid.batch, height, across * TILE, channels)[:, :, :width]
        parts.append(part.reshape(grid.batch, -1, channels))
        begin += down * across
    return jnp.concatenate(parts, axis=1)


_pooled = linear_operator("roi_align", cpu=_pool, default=_pool)
# Both forms compute the same sums. GPUs add a scatter in no fixed order, so a run could not be
# repeated bit for bit; on CPU, products are much slower.
_pooled_gradient = linear_operator(
    "roi_align_gradient", cpu=_scattered_gradient, default=_gradient_of_tiles
)
define_transposes(_pooled, {0: (_pooled_gradient, (0, 1, 2, 3))}, 4)
define_transposes(_pooled_gradient, {0: (_pooled, (0, 1, 2, 3))}, 4)
