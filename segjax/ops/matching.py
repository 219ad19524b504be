"""Matches anchors or proposals with objects, and samples those that a loss is computed on."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.boxes import coordinate_iou
from segjax.ops.platforms import by_platform

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1
# Number of true boxes that accelerators compare with all candidates at a time: with 268,000 anchors
# their IoUs take 17 MB.
BLOCK = 16
# A TPU's registers hold 8 x 128 numbers.
LANES, REGISTER = 128, 1024


@jax.named_scope("match")
def match(candidates, truth, valid, *, high: float, low: float, allow_low_quality: bool):
    """Matches each candidate with the true box that it overlaps most, and labels it.

    Ren et al., Faster R-CNN (2015), section 3.1.2, by the rules of detectron2 and torchvision. A
    candidate is positive if its IoU is at least `high`, and negative if it is below `low`. With
    `allow_low_quality`, the candidates that overlap a true box most, ties included, are positive
    too. They keep their own match, which may be another true box. A true box that overlaps no
    candidate makes none positive; in detectron2 and torchvision all candidates then tie for it.

    Args:
      candidates: [N, 4] boxes: anchors or proposals.
      truth: [M, 4] true boxes.
      valid: bool [M], which entries of `truth` are boxes; the others match nothing.
      high, low: thresholds of the IoU.
      allow_low_quality: True in the region proposal network, False in the box head.

    Returns:
      int32 [N], the index of the valid true box with the highest IoU (ties: the lowest index; 0 if
        none is valid), and
      int32 [N], the label: 1 positive, 0 negative, −1 neither.

    Raises:
      ValueError: `low` is above `high`.
    """
    if low > high:
        raise ValueError(f"low={low} of a match must not be above high={high}")
    chex.assert_shape(candidates, (None, 4), custom_message="candidates")
    chex.assert_shape(truth, (None, 4), custom_message="truth")
    number, capacity = candidates.shape[0], truth.shape[0]
    chex.assert_shape(valid, (capacity,), custom_message="valid")
    chex.assert_type(valid, bool, custom_message="valid")
    if capacity == 0:
        return jnp.zeros(number, jnp.int32), jnp.full(number, NEGATIVE, jnp.int32)
    # XLA reads the coordinates fastest as separate arrays.
    coordinates = tuple(lax.stop_gradient(candidates[:, i]) for i in range(4))
    truth, valid = lax.stop_gradient(jnp.asarray(truth)), jnp.asarray(valid)
    end = jnp.max(jnp.where(valid, jnp.arange(1, capacity + 1, dtype=jnp.int32), 0))
    best, matched, is_best = by_platform(
        coordinates,
        truth,
        valid,
        end,
        cpu=partial(_match_one_by_one, find_best=allow_low_quality),
        default=partial(_match_in_blocks, find_best=allow_low_quality),
    )
    labels = jnp.where((best >= low) & (best >= 0), NEITHER, NEGATIVE)
    return matched, jnp.where((best >= high) | is_best, POSITIVE, labels).astype(jnp.int32)


def _match_one_by_one(coordinates, truth, valid, end, *, find_best):
    """Compares all candidates with one true box at a time, up to the last valid one.

    This needs no [N, M] array. Most images have far fewer boxes than there is room for.

    Args:
      coordinates: four arrays [N].
      truth, valid: [M, 4], bool [M].
      end: one more than the index of the last valid box; 0 if there is none.
      find_best: whether to find the candidates that overlap a true box most.

    Returns:
      [N], the highest IoU of each candidate, −1 if no box is valid,
      int32 [N], the true box it belongs to, and
      bool [N], which candidates overlap a true box most; all False without `find_best`.
    """

    def overlap(i):
        return jnp.where(valid[i], coordinate_iou(truth[i], coordinates), -1.0)

    # The next IoU is part of the state so that XLA stores it. Recomputed for each reader, it might
    # be rounded differently in each, and then no candidate need equal the maximum.
    def add_truth(i, state):
        iou, best, matched, is_best = state
        matched = jnp.where(iou > best, i, matched)
        if find_best:
            highest = iou.max(initial=0.0)
            is_best |= (iou == highest) & (highest > 0)
        return overlap(i + 1), jnp.maximum(best, iou), matched, is_best

    state = overlap(0), *_unmatched(coordinates[0].shape, truth.dtype)
    return lax.fori_loop(0, end, add_truth, state)[1:]


def _match_in_blocks(coordinates, truth, valid, end, *, find_best):
    """Computes what `_match_one_by_one` does, with a block of true boxes at a time.

    An accelerator takes about as long for a block as for one box.
    """
    size = min(BLOCK, len(valid))
    padding = -len(valid) % size
    blocks = jnp.pad(truth, ((0, padding), (0, 0))).reshape(-1, size, 4)
    usable = jnp.pad(valid, (0, padding)).reshape(-1, size)
    # Candidates lie along two axes, so that a TPU reduces them and the boxes by plain arithmetic on
    # its registers of 8 x 128 numbers. The boxes that fill up are empty and overlap nothing.
    number = len(coordinates[0])
    coordinates = tuple(
        jnp.pad(x, (0, -number % REGISTER)).reshape(1, -1, LANES) for x in coordinates
    )

    def add_block(block, state):
        best, matched, is_best = state
        boxes = blocks[block].T[:, :, None, None]
        iou = jnp.where(usable[block][:, None, None], coordinate_iou(boxes, coordinates), -1.0)
        # The barrier makes XLA store the IoUs: see `_match_one_by_one`.
        iou = lax.optimization_barrier(iou)
        best_of_block = iou.max(0)
        closest = block * size + jnp.argmax(iou, 0).astype(jnp.int32)
        matched = jnp.where(best_of_block > best, closest, matched)
        if find_best:
            # Registers first, then within them; one reduction over all would do it the other way.
            highest = lax.optimization_barrier(iou.reshape(size, -1, 8, LANES).max(1))
            highest = highest.max((1, 2), initial=0.0)[:, None, None]
            is_best |= ((iou == highest) & (highest > 0)).any(0)
        return jnp.maximum(best, best_of_block), matched, is_best

    unmatched = _unmatched(coordinates[0].shape[1:], truth.dtype)
    state = lax.fori_loop(0, (end + size - 1) // size, add_block, unmatched)
    return tuple(x.reshape(-1)[:number] for x in state)


def _unmatched(shape, dtype):
    """Returns the highest IoU, the match and whether it is a best one, before any comparison."""
    return jnp.full(shape, -1.0, dtype), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)


def sample(key, labels, *, size: int, positive_fraction: float):
    """Samples positive and negative candidates at random, without replacement.

    Girshick, Fast R-CNN (2015), section 2.3. At most ⌊positive_fraction · size⌋ candidates are
    positive; negatives fill the rest.

    Args:
      key: a key of `jax.random`.
      labels: int [N], the labels from `match`; candidates labelled −1 are not drawn.
      size: number of candidates to draw; it may be larger than N.
      positive_fraction: 0.5 in the region proposal network, 0.25 in the box head.

    Returns:
      int32 [size], indices of candidates, the positives first, and
      bool [size], which entries hold a candidate; the others come last and hold 0.

    Raises:
      ValueError: the fraction is not between 0 and 1.
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction={positive_fraction}: expected between 0 and 1")
    chex.assert_rank(labels, 1, custom_message="labels")
    chex.assert_type(labels, int, custom_message="labels")
    # Random floats of 30 bits, almost always distinct: `top_k` is fast on CPUs for floats only. The
    # added power of two keeps them normal, because XLA treats subnormal floats as zero.
    bits = jax.random.bits(key, labels.shape, jnp.uint32)
    priority = lax.bitcast_convert_type((bits >> 2) + jnp.uint32(2**23), jnp.float32)
    positives, positive_count = _draw(priority, labels == POSITIVE, int(positive_fraction * size))
    negatives, negative_count = _draw(priority, labels == NEGATIVE, size)
    place = jnp.arange(size)
    after = place - positive_count
    # `positives` may be empty.
    positives = jnp.pad(positives, (0, size - positives.shape[0]))
    indices = jnp.where(after < 0, positives, negatives[jnp.maximum(after, 0)])
    valid = after < negative_count
    return jnp.where(valid, indices, 0), valid


def _draw(priority, wanted, count):
    """Returns the `count` wanted entries of highest priority: indices [count], and how many."""
    drawn = min(count, priority.shape[0])
    priority, indices = lax.top_k(jnp.where(wanted, priority, -1.0), drawn)
    return jnp.pad(indices, (0, count - drawn)), jnp.sum(priority > 0)
