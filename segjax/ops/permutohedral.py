"""Gaussian filtering in many dimensions on the permutohedral lattice, with fixed shapes.

Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice (Eurographics
2010), in the form that Krähenbühl and Koltun's fully connected CRF uses: splat each point onto the
d+1 corners of its simplex, blur along the d+1 directions of the lattice, slice.

There is no hash table. The corners are sorted, so that equal ones are adjacent. Every later step is
then a gather from tables that are built once for an image. Only one sum depends on the order of
threads: a GPU's scatter-add over blocks. `--xla_gpu_deterministic_ops`, which segjax sets for all
runs, fixes its order.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# The corners of a lattice point are summed in blocks of this many rows. Each block is a gather,
# which leaves few rows to be scattered.
BLOCK = 8


class Corners(NamedTuple):
    """The simplex corners of all points, sorted by lattice point.

    Attributes:
      key_high, key_low: uint32 [d+1, points], the upper and lower halves of the sorted keys. Row r
        has the corners with remainder r (Adams et al., section 3.1); rows share no lattice point.
      strides: uint32 [2, d], the key differences of a step along each coordinate, in halves.
      point: int32 [d+1, points], the point that each sorted corner belongs to.
      lattice_point: int32 [d+1, points], the number of each sorted corner's lattice point, rising
        from 0.
      weights: float32 [d+1, points], the barycentric weights by remainder and point, unsorted.
      num_lattice_points: int32.
      fits: bool, whether the coordinates fit into the keys.
    """

    key_high: jax.Array
    key_low: jax.Array
    strides: jax.Array
    point: jax.Array
    lattice_point: jax.Array
    weights: jax.Array
    num_lattice_points: jax.Array
    fits: jax.Array


class Lattice(NamedTuple):
    """Tables for filtering. Unused rows of lattice points stay zero.

    Attributes:
      corners: int32 [d+1, points], the lattice points that each point is sliced from.
      weights: float32 [d+1, points], barycentric weights; all NaN if the lattice overflowed.
      block_points, block_weights: [BLOCK, blocks], the points that each block sums, and their
        weights.
      block_target: int32 [blocks], the lattice point of each block, in rising order.
      neighbors: int32 [d+1, 2, capacity + 1], the two neighbours along each direction; `capacity`
        stands for none.
    """

    corners: jax.Array
    weights: jax.Array
    block_points: jax.Array
    block_weights: jax.Array
    block_target: jax.Array
    neighbors: jax.Array


def sort_corners(features, valid) -> Corners:
    """Finds each point's simplex in the lattice and sorts the corners.

    Args:
      features: float32 [points, d], d ≤ 7, in units of the Gaussian's standard deviation.
      valid: bool [points]; invalid points get weight 0 and add no lattice point.
    """
    points, dimensions = features.shape
    features = jnp.where(valid[:, None], features, features[jnp.argmax(valid)])
    base, rank, weights = _simplex(features)
    weights = jnp.where(valid[None], weights, 0.0)
    # The sum of the d+1 coordinates is known, so d of them identify a lattice point.
    base, rank = base[:, :dimensions], rank[:, :dimensions]
    index_bits = max(3, (points - 1).bit_length())  # `connect` needs 3 bits for the remainder
    key_bits = 64 - index_bits
    # One more on each side, so that neighbours have keys too.
    lowest = base.min(axis=0) - 2
    spans = base.max(axis=0) - lowest + 2
    fits = jnp.log2(spans.astype(jnp.float32)).sum() < key_bits - 0.01

    with jax.enable_x64(True):
        spans = spans.astype(jnp.uint64)
        strides = jnp.concatenate([jnp.ones(1, jnp.uint64), jnp.cumprod(spans[:-1])])
        # For remainder r, the coordinates of the r highest ranks are one step lower.
        threshold = dimensions - jnp.arange(dimensions + 1, dtype=jnp.int32)
        lower = rank[None] > threshold[:, None, None]
        digits = ((base - lowest[None])[None] - lower.astype(jnp.int32)).astype(jnp.uint64)
        keys = (digits * strides[None, None]).sum(axis=2, dtype=jnp.uint64)
        index = jnp.arange(points, dtype=jnp.uint64)[None]
        # Sort a single operand: on CPU, XLA sorts pairs several times more slowly.
        keys = jnp.sort(keys << jnp.uint64(index_bits) | index, axis=1)
        point = (keys & jnp.uint64(2**index_bits - 1)).astype(jnp.int32)
        keys = keys >> jnp.uint64(index_bits)
        is_new = jnp.concatenate(
            [jnp.ones((dimensions + 1, 1), bool), keys[:, 1:] != keys[:, :-1]], axis=1
        )
        high, low, strides = *_halves(keys), jnp.stack(_halves(strides))
    lattice_point = jnp.cumsum(is_new.reshape(-1), dtype=jnp.int32).reshape(is_new.shape) - 1
    count = lattice_point[-1, -1] + 1
    return Corners(high, low, strides, point, lattice_point, weights, count, fits)


def connect(corners: Corners, capacity: int) -> Lattice:
    """Builds the lattice's tables from its sorted corners.

    Args:
      capacity: number of rows for lattice points. If there are more lattice points, or if the
        coordinates do not fit into the keys, the lattice filters everything to NaN.
    """
    directions, points = corners.point.shape
    entries = directions * points
    lattice_point, point = corners.lattice_point.reshape(-1), corners.point.reshape(-1)
    order = jnp.arange(entries, dtype=jnp.int32)
    fits = corners.fits & (corners.num_lattice_points <= capacity)
    poison = jnp.where(fits, 1.0, jnp.nan)
    weights = corners.weights * poison.astype(jnp.float32)

    remainder = jnp.broadcast_to(
        jnp.arange(directions, dtype=jnp.int32)[:, None], corners.point.shape
    ).reshape(-1)
    own = jnp.zeros((directions, points), jnp.int32)
    own = own.at[remainder, point].set(lattice_point, unique_indices=True)
    own = jnp.minimum(own, capacity)

    is_new = jnp.concatenate([jnp.ones(1, bool), lattice_point[1:] != lattice_point[:-1]])
    # The first corner of each lattice point; the next entry ends its corners.
    start = jnp.full(capacity + 1, entries, jnp.int32)
    start = start.at[jnp.where(is_new, lattice_point, capacity + 1)].set(order, mode="drop")
    neighbors = _neighbors(corners, start, remainder)

    blocks = -(-entries // BLOCK) + capacity
    block_counts = (start[1:] - start[:-1] + BLOCK - 1) // BLOCK
    numbers = jnp.arange(capacity, dtype=jnp.int32)
    target = jnp.repeat(numbers, block_counts, total_repeat_length=blocks)
    first_block = jnp.cumsum(block_counts, dtype=jnp.int32) - block_counts
    place = jnp.arange(blocks, dtype=jnp.int32) - first_block[target]
    entry = (start[target] + BLOCK * place)[None] + jnp.arange(BLOCK, dtype=jnp.int32)[:, None]
    is_entry = entry < start[target + 1][None]
    entry = jnp.minimum(entry, entries - 1)
    block_points = jnp.where(is_entry, point[entry], 0)
    block_weights = jnp.where(is_entry, weights[remainder[entry], block_points], 0.0)
    return Lattice(own, weights, block_points, block_weights, target, neighbors)


def scale_lattice(lattice: Lattice, scale) -> Lattice:
    """Returns a lattice that filters with scale_i · K_ij · scale_j; `scale` is [points]."""
    return lattice._replace(
        weights=lattice.weights * scale[None],
        block_weights=lattice.block_weights * scale[lattice.block_points],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lattice_filter(lattice: Lattice, values, reverse: bool = False):
    """Sums values over all points, weighted by a Gaussian of the distance of their features.

    Approximates out_i = Σ_j exp(−½ |f_i − f_j|²) values_j, including j = i, up to a factor near 1
    that normalising cancels. Blurring drops values that leave the occupied lattice, so its
    directions do not quite commute. `reverse` blurs in the opposite order, which is the exact
    transpose. Only `values` has a derivative, in reverse mode.

    Args:
      values: float32 [points, channels].

    Returns:
      [points, channels].
    """
    dimensions = lattice.corners.shape[0] - 1
    blocks = _gather_and_sum(values, lattice.block_points, lattice.block_weights)
    rows = jnp.zeros((lattice.neighbors.shape[-1], values.shape[1]), values.dtype)
    rows = rows.at[lattice.block_target].add(
        blocks, indices_are_sorted=True, mode="promise_in_bounds"
    )

    directions = lattice.neighbors[::-1] if reverse else lattice.neighbors
    for after, before in directions:
        beside = [rows.at[side].get(mode="promise_in_bounds") for side in (after, before)]
        # The last row stands for absent neighbours and is zero already. But the scatter keeps XLA
        # from fusing each blur into its readers in the next blur, which would triple the work.
        absent = after[-1:]
        rows = (rows + 0.5 * (beside[0] + beside[1])).at[absent].set(0.0)
    # Krähenbühl's constant brings the gain close to that of the Gaussian above.
    gain = 1 / (1 + 2.0**-dimensions)
    return _gather_and_sum(rows, lattice.corners, gain * lattice.weights)


def _filter_forward(lattice, values, reverse):
    return lattice_filter(lattice, values, reverse), lattice


def _filter_backward(reverse, lattice, cotangent):
    return None, lattice_filter(lattice, cotangent, not reverse)


lattice_filter.defvjp(_filter_forward, _filter_backward)


def _gather_and_sum(rows, indices, weights):
    """Computes Σ_k weights[k, n] · rows[indices[k, n]], for indices and weights [k, n]."""
    return sum(
        weight[:, None] * rows.at[index].get(mode="promise_in_bounds")
        for index, weight in zip(indices, weights, strict=True)
    )


def _simplex(features):
    """Locates points in the lattice (Adams et al., section 4.1).

    Returns:
      base: int32 [points, d+1], the corner of remainder 0, divided by d+1.
      rank: int32 [points, d+1], the rank of each coordinate's distance from that corner, the
        largest first.
      weights: float32 [d+1, points], the barycentric weights by the corner's remainder.
    """
    points, dimensions = features.shape
    side = dimensions + 1
    # Splatting, blurring and slicing together spread by √(2/3) · (d+1), which becomes the unit of
    # the features. The root in `scale` makes the axes of the hyperplane equally long.
    number = np.arange(1, side)
    scale = np.sqrt(2 / 3) * side / np.sqrt(number * (number + 1))
    scaled = features * jnp.asarray(scale, features.dtype)[None]
    # Embed in the hyperplane Σ x = 0 of d+1 coordinates: x_j = Σ_{i ≥ j} s_i − j · s_{j−1}.
    tail = jnp.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
    zero = jnp.zeros((points, 1), features.dtype)
    steps = jnp.asarray(number, features.dtype)[None] * scaled
    elevated = jnp.concatenate([tail, zero], axis=1) - jnp.concatenate([zero, steps], axis=1)

    base = jnp.round(elevated / side)
    excess = base.sum(axis=1, keepdims=True).astype(jnp.int32)
    distance = elevated - base * side
    earlier = jnp.asarray(np.tri(side, k=-1, dtype=bool))[None]
    mine, other = distance[:, :, None], distance[:, None, :]
    # Ties go to the earlier coordinate.
    rank = ((other > mine) | ((other == mine) & earlier)).sum(axis=2, dtype=jnp.int32) + excess
    wrap = (rank < 0).astype(jnp.int32) - (rank > dimensions).astype(jnp.int32)
    rank, base = rank + wrap * side, base.astype(jnp.int32) + wrap
    distance = (elevated - (base * side).astype(features.dtype)) / side

    # Distances fall with rank; the weight of remainder r is the difference of two of them.
    is_place = rank[:, :, None] == jnp.arange(side, dtype=jnp.int32)[None, None]
    by_rank = jnp.where(is_place, distance[:, :, None], 0.0).sum(axis=1).T
    falling = by_rank[::-1]
    weights = falling - jnp.concatenate([by_rank[:1] - 1, falling[:-1]])
    return base, rank, weights


def _neighbors(corners: Corners, start, remainder):
    """Finds each lattice point's neighbours along all directions: int32 [d+1, 2, capacity + 1]."""
    directions, points = corners.point.shape
    capacity = len(start) - 1
    here = jnp.minimum(start, directions * points - 1)
    numbers = jnp.arange(capacity + 1, dtype=jnp.int32)
    exists = (numbers < corners.num_lattice_points) & (start < directions * points)
    remainder = remainder[here]
    with jax.enable_x64(True):
        keys = _whole(corners.key_high.reshape(-1)[here], corners.key_low.reshape(-1)[here])
        strides = _whole(*corners.strides)
        strides = jnp.concatenate([strides, jnp.zeros(1, jnp.uint64)])
        last = remainder == directions - 1

        def ranked(remainder, key):
            return remainder.astype(jnp.uint64) << jnp.uint64(61) | key

        table = jnp.where(exists, ranked(remainder, keys), jnp.uint64(2**64 - 1))
        # A step subtracts d from one coordinate and adds 1 to all others.
        step = jnp.where(last[None], strides.sum() - strides[:, None], -strides[:, None])
        wanted = ranked(jnp.where(last, 0, remainder + 1)[None], keys[None] + step)
        place = jnp.searchsorted(table, wanted).astype(jnp.int32)
        place = jnp.minimum(place, capacity)
        after = jnp.where(exists[None] & (table[place] == wanted), place, capacity)
    numbers = jnp.broadcast_to(numbers, after.shape)
    direction = jnp.arange(directions, dtype=jnp.int32)[:, None]
    before = jnp.full_like(after, capacity).at[direction, after].set(numbers)
    return jnp.stack([after, before.at[:, capacity].set(capacity)], axis=1)


def _halves(keys):
    return (keys >> jnp.uint64(32)).astype(jnp.uint32), keys.astype(jnp.uint32)


def _whole(high, low):
    return high.astype(jnp.uint64) << jnp.uint64(32) | low.astype(jnp.uint64)
