"""Greedy non-maximum suppression with fixed shapes."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.boxes import coordinate_iou
from segjax.ops.platforms import by_platform

# Number of boxes that are decided together. Larger tiles take fewer steps but compare more pairs.
# On 2 CPU cores, 64 is faster than 256 for both 1,000 and 20,000 boxes. On accelerators a step
# costs more than a million pairs.
TILE = 64
ACCELERATOR_TILE = 1024


class _Boxes(NamedTuple):
    """Boxes along the last axis: coordinates [4, n], groups [1, n], places in the input [1, n]."""

    coordinates: jax.Array
    group: jax.Array
    place: jax.Array

    def slice(self, start, size):
        return _Boxes(*(lax.dynamic_slice_in_dim(x, start, size, 1) for x in self))


@jax.named_scope("nms")
def nms(
    boxes, scores, *, iou_threshold: float, max_outputs: int, valid=None, groups=None
) -> tuple[jax.Array, jax.Array]:
    """Selects boxes by descending score, and suppresses those that overlap a selected box too much.

    A box is suppressed if its IoU with a selected box of its group is above the threshold. Ties in
    score go to the lower index.

    The sorted boxes are processed in tiles. Each tile is compared with all boxes selected so far
    and with itself, until enough boxes are selected or none is left.

    Args:
      boxes: [N, 4].
      scores: [N]; a box whose score is NaN is not valid.
      iou_threshold: the largest IoU at which two boxes are both selected.
      max_outputs: the largest number of boxes to select.
      valid: bool [N], the entries that are boxes; all by default.
      groups: integers [N], such as pyramid levels or classes; boxes of different groups do not
        suppress each other. One group by default.

    Returns:
      int32 [max_outputs], the indices of the selected boxes, and
      bool [max_outputs], which entries hold a box; the others come last and hold 0.

    Raises:
      ValueError: `max_outputs` is below 1.
    """
    if max_outputs < 1:
        raise ValueError(f"max_outputs={max_outputs} of nms: expected 1 or more")
    chex.assert_shape(boxes, (None, 4), custom_message="boxes")
    number = boxes.shape[0]
    chex.assert_shape(scores, (number,), custom_message="scores")
    if valid is not None:
        chex.assert_shape(valid, (number,), custom_message="valid")
        chex.assert_type(valid, bool, custom_message="valid")
    if groups is not None:
        chex.assert_shape(groups, (number,), custom_message="groups")
        chex.assert_type(groups, int, custom_message="groups")
    boxes, scores = lax.stop_gradient(boxes), lax.stop_gradient(scores).astype(jnp.float32)
    groups = jnp.zeros(number, jnp.int32) if groups is None else groups
    valid = ~jnp.isnan(scores) & (True if valid is None else valid)
    # Invalid boxes go last, even after a score of −∞.
    scores = jnp.maximum(scores, jnp.finfo(jnp.float32).min)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf)).astype(jnp.int32)
    candidates = _Boxes(boxes[order].T, groups[order][None], order[None])
    options = {"iou_threshold": iou_threshold, "max_outputs": max_outputs}
    return by_platform(
        candidates,
        jnp.sum(valid),
        cpu=partial(_select, **options),
        default=partial(_select_on_accelerator, **options),
    )


def _select(candidates, total, *, iou_threshold, max_outputs):
    """Selects among the first `total` boxes, which are sorted by score; returns what `nms` does."""
    tile_size = max(1, min(TILE, candidates.place.shape[1]))
    candidates = _padded(candidates, tile_size)
    selected = _padded(
        _Boxes(*(jnp.zeros((x.shape[0], max_outputs), x.dtype) for x in candidates)), tile_size
    )

    def unfinished(state):
        start, count, _ = state
        return (start < total) & (count < max_outputs)

    def select_from_tile(state):
        start, count, selected = state
        tile = candidates.slice(start, tile_size)
        places = jnp.arange(tile_size)

        def compare(block, left):
            first = block * tile_size
            left_out = _suppresses(selected.slice(first, tile_size), tile, iou_threshold)
            return left & ~(left_out & (first + places < count)[:, None]).any(0)

        blocks = (count + tile_size - 1) // tile_size
        left = lax.fori_loop(0, blocks, compare, start + places < total)
        left = _select_greedily(left, _suppresses(tile, tile, iou_threshold))
        # Boxes that are left out get a place beyond the array, which is not written to.
        target = jnp.where(left, count + jnp.cumsum(left) - 1, selected.place.shape[1])
        selected = jax.tree.map(lambda to, x: to.at[:, target].set(x, mode="drop"), selected, tile)
        return start + tile_size, jnp.minimum(count + jnp.sum(left), max_outputs), selected

    state = (0, 0, selected)
    _, count, selected = lax.while_loop(unfinished, select_from_tile, state)
    is_selected = jnp.arange(max_outputs) < count
    return jnp.where(is_selected, selected.place[0, :max_outputs], 0), is_selected


def _select_on_accelerator(
    candidates, total, *, iou_threshold, max_outputs, tile_size=ACCELERATOR_TILE
):
    """Selects what `_select` does, in few steps of much arithmetic.

    Each tile is compared with all boxes, of which those selected so far count. So no step reads or
    writes at a place that depends on the data: in a batch, such places differ between the images,
    and a TPU would visit them one after the other.
    """
    number = candidates.place.shape[1]
    tile_size = max(1, min(tile_size, number))
    candidates = _padded(candidates, tile_size)
    length = candidates.place.shape[1]
    # Tiles along the first axis.
    tiles = jax.tree.map(lambda x: x.reshape(len(x), -1, tile_size).swapaxes(0, 1), candidates)
    places = jnp.arange(length, dtype=jnp.int32)

    def unfinished(state):
        tile, selected = state
        return (tile * tile_size < total) & (jnp.sum(selected) < max_outputs)

    def select_from_tile(state):
        index, selected = state
        tile = jax.tree.map(lambda x: x[index], tiles)
        suppressed = (_suppresses(candidates, tile, iou_threshold) & selected[:, None]).any(0)
        left = ~suppressed & (index * tile_size + jnp.arange(tile_size) < total)
        # The barrier makes XLA store the comparison, which each step of the choice reads.
        within = lax.optimization_barrier(_suppresses(tile, tile, iou_threshold))
        left = _select_greedily(left, within)
        is_of_tile = places // tile_size == index
        return index + 1, selected | (is_of_tile & jnp.tile(left, length // tile_size))

    _, selected = lax.while_loop(unfinished, select_from_tile, (0, jnp.zeros(length, bool)))
    # Moves the selected boxes to the front, in their order.
    _, indices = lax.sort((jnp.where(selected, places, length), candidates.place[0]), num_keys=1)
    indices = jnp.pad(indices[:max_outputs], (0, max(0, max_outputs - length)))
    is_selected = jnp.arange(max_outputs) < jnp.sum(selected)
    return jnp.where(is_selected, indices, 0), is_selected


def _padded(boxes, tile_size):
    """Pads boxes with zeros to whole tiles, at least one."""
    number = boxes.place.shape[1]
    padding = max(tile_size - number, -number % tile_size)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, padding))), boxes)


def _suppresses(a, b, iou_threshold):
    """Computes which boxes of `a` and of `b` cannot both be selected: bool [in a, in b]."""
    iou = coordinate_iou(a.coordinates[:, :, None], b.coordinates[:, None])
    return (iou > iou_threshold) & (b.group == a.group.T)


def _select_greedily(left, suppresses):
    """Selects the boxes of a sorted tile in `left` that no earlier selected box suppresses.

    Applies this rule to all boxes at once, until nothing changes. After step k at least the first k
    boxes are decided. A few steps usually suffice: as many as the longest chain of boxes of which
    each decides about the next.
    """
    earlier = jnp.triu(suppresses, 1)

    def step(state):
        _, now = state
        return now, left & ~(earlier & now[:, None]).any(0)

    def changes(state):
        before, now = state
        return jnp.any(before != now)

    return lax.while_loop(changes, step, (jnp.zeros_like(left), left))[1]
