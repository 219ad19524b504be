"""Which truth each anchor or proposal is trained on, and which of them are trained on at all."""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.boxes import coordinate_iou

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1


def match(candidates, truth, valid, *, high: float, low: float, allow_low_quality: bool):
    """Matches each candidate with the truth that it overlaps most, and labels it.

    Ren et al., Faster R-CNN (2015), section 3.1.2, by the rules of detectron2 and torchvision: a
    candidate is positive from an IoU of `high`, negative below `low`. With `allow_low_quality`,
    the candidates that a truth overlaps most, ties included, are positive as well; they keep their
    own match, which may be another truth. Unlike in detectron2 and torchvision, a truth that
    overlaps no candidate makes none positive; there, all candidates tie for it.

    Args:
      candidates: [N, 4] boxes: anchors or proposals.
      truth: [M, 4] boxes.
      valid: bool [M], which truths there are; other entries match nothing.
      high, low: thresholds of the IoU.
      allow_low_quality: True in the region proposal network, False in the box head.

    Returns:
      int32 [N], the index of the valid truth with the highest IoU, the lowest index among equals
        (0 if no truth is valid), and
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
    # Coordinates as arrays of their own, which XLA reads fastest.
    coordinates = tuple(lax.stop_gradient(candidates[:, i]) for i in range(4))
    truth, valid = lax.stop_gradient(jnp.asarray(truth)), jnp.asarray(valid)

    def overlap(i):
        return jnp.where(valid[i], coordinate_iou(truth[i], coordinates), -1.0)

    # One truth at a time: no [N, M] array, and no work beyond the last valid truth, as capacities
    # are much larger than what most images hold. The next IoU is part of the state, so that it is
    # stored: computed anew for each reader, it might be rounded in another way in each, and then
    # nothing need equal its own maximum.
    def add_truth(i, state):
        iou, best, matched, is_best = state
        matched = jnp.where(iou > best, i, matched)
        if allow_low_quality:
            highest = iou.max(initial=0.0)
            is_best |= (iou == highest) & (highest > 0)
        return overlap(i + 1), jnp.maximum(best, iou), matched, is_best

    state = (
        overlap(0),
        jnp.full(number, -1.0, truth.dtype),
        jnp.zeros(number, jnp.int32),
        jnp.zeros(number, bool),
    )
    end = jnp.max(jnp.where(valid, jnp.arange(1, capacity + 1, dtype=jnp.int32), 0))
    _, best, matched, is_best = lax.fori_loop(0, end, add_truth, state)
    labels = jnp.where((best >= low) & (best >= 0), NEITHER, NEGATIVE)
    return matched, jnp.where((best >= high) | is_best, POSITIVE, labels).astype(jnp.int32)


def sample(key, labels, *, size: int, positive_fraction: float):
    """Draws candidates at random, without replacement: some positives, the rest negatives.

    Girshick, Fast R-CNN (2015), section 2.3. At most ⌊positive_fraction · size⌋ are positives;
    negatives fill the rest.

    Args:
      key: of `jax.random`.
      labels: int [N], of `match`; candidates labelled neither 1 nor 0 are not drawn.
      size: of the sample; it may be larger than N.
      positive_fraction: 0.5 in the region proposal network, 0.25 in the box head.

    Returns:
      int32 [size], indices of candidates, the positives first, and
      bool [size], whether the entry is one; the others, last, hold 0.

    Raises:
      ValueError: the fraction is not between 0 and 1.
    """
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction={positive_fraction}: expected between 0 and 1")
    chex.assert_rank(labels, 1, custom_message="labels")
    chex.assert_type(labels, int, custom_message="labels")
    # Random floats of 30 bits, all distinct as a rule: `top_k` is fast on CPUs for floats only. The
    # added power of two keeps them normal, as XLA takes subnormal floats for zero.
    bits = jax.random.bits(key, labels.shape, jnp.uint32)
    priority = lax.bitcast_convert_type((bits >> 2) + jnp.uint32(2**23), jnp.float32)
    positives, positive_count = _draw(priority, labels == POSITIVE, int(positive_fraction * size))
    negatives, negative_count = _draw(priority, labels == NEGATIVE, size)
    place = jnp.arange(size)
    after = place - positive_count
    # `positives` may have no entry at all.
    positives = jnp.pad(positives, (0, size - positives.shape[0]))
    indices = jnp.where(after < 0, positives, negatives[jnp.maximum(after, 0)])
    valid = after < negative_count
    return jnp.where(valid, indices, 0), valid


def _draw(priority, wanted, count):
    """Up to `count` wanted entries of the highest priority: indices [count] and their number."""
    drawn = min(count, priority.shape[0])
    priority, indices = lax.top_k(jnp.where(wanted, priority, -1.0), drawn)
    return jnp.pad(indices, (0, count - drawn)), jnp.sum(priority > 0)
