"""RoIAlign's gradient for GPUs and TPUs: products, tile by tile of the maps.

GPUs add a scatter in no fixed order, so a run could not be repeated bit for bit, and TPUs scatter
slowly. Here each cell of the maps is computed once, as a sum over the boxes that may read it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.dtypes import sum_dtype
from segjax.ops.roi_align_samples import Grid, interpolation_matrices

TILE = 16  # cells along a side
TILES_AT_ONCE = 64
BINS_OF_PRODUCT = 784  # that a product sums over: 16 boxes of 7 x 7 bins


class _Tiles(NamedTuple):
    """Squares that cover all levels of all images; each field has an entry for each."""

    image: np.ndarray
    level: np.ndarray
    first: np.ndarray  # row and column of cells, [tiles, 2]


def _tiles(grid):
    """Lists the tiles by image, level, row and column."""
    firsts = [
        np.moveaxis(np.mgrid[0:height:TILE, 0:width:TILE], 0, -1).reshape(-1, 2)
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


def gradient_of_tiles(gradient, start, length, levels, *, options: Grid):
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

    def add_tiles(group, computed):
        begin = group * TILES_AT_ONCE
        places = lax.dynamic_slice_in_dim(padded, begin, TILES_AT_ONCE)
        image, level, first = (jnp.asarray(x)[places] for x in tiles)
        rank, count = ranks[places], counts[places]
        # Both matrices have an entry for each cell of a tile, which fills a TPU's vectors.
        offsets = np.stack(np.divmod(np.arange(TILE**2, dtype=np.int32), TILE))
        cells = first.T[:, :, None] + offsets[:, None]

        def add_chunk(number, total):
            wanted = number * chunk + 1 + jnp.arange(chunk, dtype=jnp.int32)
            new = wanted[None] <= count[:, None]
            # The tile's last box fills up its last chunk.
            wanted = jnp.minimum(wanted[None], count[:, None])
            box = jnp.sum(rank[:, None] < wanted[..., None], axis=2, dtype=jnp.int32)
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
            rows = jnp.where(new[..., None, None], rows, 0)
            return total + jnp.einsum(
                "tnhwp,tnhwc->tpc",
                rows[..., :, None, :] * columns[..., None, :, :],
                gradient.at[here].get(mode="promise_in_bounds"),
                preferred_element_type=total.dtype,
            )

        zeros = jnp.zeros((TILES_AT_ONCE, TILE**2, channels), sum_dtype(gradient))
        with jax.named_scope("boxes"):
            total = lax.fori_loop(0, -(-jnp.max(count) // chunk), add_chunk, zeros)
        total = total.astype(gradient.dtype)
        return lax.dynamic_update_slice_in_dim(computed, total, begin, axis=0)

    # The tiles that no box reads come last and are masked below, so nobody has to clear them.
    groups = -(-jnp.sum(counts > 0, dtype=jnp.int32) // TILES_AT_ONCE)
    computed = lax.empty((len(padded), TILE**2, channels), gradient.dtype)
    with jax.named_scope("tiles"):
        computed = lax.fori_loop(0, groups, add_tiles, computed)
    strips = computed.reshape(-1, TILE, channels)  # one row of cells of a tile
    places = jnp.argsort(order).reshape(grid.batch, -1)
    counts = counts.reshape(grid.batch, -1)
    parts, begin = [], 0
    for height, width in grid.sizes:
        down, across = -(-height // TILE), -(-width // TILE)
        place, count = (
            x[:, begin : begin + down * across].reshape(grid.batch, down, 1, across)
            for x in (places, counts)
        )
        rows = place * TILE + jnp.arange(TILE, dtype=jnp.int32)[None, None, :, None]
        rows, filled = (
            jnp.broadcast_to(x, rows.shape).reshape(grid.batch, -1, across)[:, :height]
            for x in (rows, count > 0)
        )
        part = strips.at[rows].get(mode="promise_in_bounds")
        part = jnp.where(filled[..., None, None], part, 0)
        part = part.reshape(grid.batch, height, across * TILE, channels)[:, :, :width]
        parts.append(part.reshape(grid.batch, -1, channels))
        begin += down * across
    return jnp.concatenate(parts, axis=1)
