"""The samples of RoIAlign: how many there are, the cells that they read, and the weights."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Grid(NamedTuple):
    batch: int
    sizes: tuple[tuple[int, int], ...]  # rows and columns of cells of each level
    bins: tuple[int, int]
    sampling_ratio: int


def sample_counts(length, bins, cells, sampling_ratio):
    """Computes the number of samples per bin, int32 [...]."""
    if sampling_ratio:
        return jnp.full(length.shape, sampling_ratio, jnp.int32)
    # The limit keeps the loop over samples finite, even if a box is not.
    most = jnp.ceil((cells.astype(jnp.float32) + 1) / bins)
    return jnp.clip(jnp.ceil(length / bins), 0, most).astype(jnp.int32)


def _touches(position, cells):
    """Computes whether a sample is at most one cell outside the map."""
    return (position >= -1) & (position <= cells.astype(jnp.float32))


def taps(sample, start, length, counts, bins, cells):
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
    counts = sample_counts(length, bins, cells, sampling_ratio)

    def add_sample(sample, total):
        for cell, weight in taps(sample, start, length, counts, bins, cells):
            total += jnp.where(cell[..., None] == index[..., None, :], weight[..., None], 0)
        return total

    total = jnp.zeros((*start.shape, bins, index.shape[-1]), jnp.float32)
    if sampling_ratio:  # unrolled, so that compilers fuse the samples
        return lax.fori_loop(0, sampling_ratio, add_sample, total, unroll=True)
    return lax.fori_loop(0, jnp.max(counts, initial=0), add_sample, total)
