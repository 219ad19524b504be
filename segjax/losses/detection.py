"""The losses of Mask R-CNN: sums over sampled anchors or regions, divided by a count.

If the count is a mean over all devices, the mean of the losses over the devices is the loss of the
whole batch, however the objects are spread; see `segjax.losses.instance`.
"""

import chex
import jax.numpy as jnp
import optax

from segjax.losses.cross_entropy import softmax_cross_entropy


def smooth_l1(values, *, beta: float):
    """Computes v² / 2β where |v| < β, and |v| − β/2 elsewhere: Fast R-CNN, equation 3.

    β = 0 gives |v|. Girshick's code uses β = 1, torchvision's models 1/9, and detectron2's 0.
    """
    size = jnp.abs(values)
    if beta == 0:
        return size
    return jnp.where(size < beta, 0.5 * values**2 / beta, size - 0.5 * beta)


def objectness_loss(logits, positive, valid, *, normalizer):
    """Computes the binary cross-entropy of anchors, summed over the valid ones / normaliser.

    Args:
      logits: [..., anchors].
      positive, valid: bool [..., anchors].
      normalizer: scalar, the number of anchors to divide by.
    """
    chex.assert_type(logits, float, custom_message="logits")
    _check_flags(positive, logits.shape, "positive")
    _check_flags(valid, logits.shape, "valid")
    _check_normalizer(normalizer)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits, positive.astype(jnp.float32))
    return jnp.sum(jnp.where(valid, losses, 0.0)) / normalizer


def box_loss(deltas, targets, positive, *, beta: float, normalizer):
    """Computes the smooth L1 loss of box deltas, summed over the positive ones / normaliser.

    Args:
      deltas, targets: [..., 4]; targets that are not positive may have any value.
      positive: bool [...].
      beta: see `smooth_l1`.
      normalizer: scalar, the number of samples, including negative ones.
    """
    chex.assert_shape(deltas, (..., 4), custom_message="deltas")
    chex.assert_shape(targets, deltas.shape, custom_message="targets")
    _check_flags(positive, deltas.shape[:-1], "positive")
    _check_normalizer(normalizer)
    # Mask first: unmatched targets may be infinite and would poison the gradient.
    differences = deltas - jnp.where(positive[..., None], targets, deltas)
    return jnp.sum(smooth_l1(differences, beta=beta)) / normalizer


def class_loss(logits, classes, valid, *, normalizer):
    """Computes the cross-entropy of regions, summed over the valid ones / normaliser.

    Args:
      logits: [..., regions, 1 + classes], background first.
      classes: [..., regions] integers, 0 = background.
      valid: bool [..., regions].
      normalizer: scalar, the number of regions to divide by.
    """
    chex.assert_type(logits, float, custom_message="logits")
    chex.assert_shape(classes, logits.shape[:-1], custom_message="classes")
    chex.assert_type(classes, int, custom_message="classes")
    _check_flags(valid, logits.shape[:-1], "valid")
    _check_normalizer(normalizer)
    losses = softmax_cross_entropy(logits, classes)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / normalizer


def mask_loss(logits, targets, positive, *, normalizer):
    """Computes the binary cross-entropy of masks (section 3), averaged over a region's pixels.

    Args:
      logits: [..., regions, h, w], the logits of the true class.
      targets: [..., regions, h, w] in [0, 1].
      positive: bool [..., regions].
      normalizer: scalar, the number of positive regions.
    """
    chex.assert_shape(logits, (..., None, None, None), custom_message="logits")
    chex.assert_shape(targets, logits.shape, custom_message="targets")
    _check_flags(positive, logits.shape[:-2], "positive")
    _check_normalizer(normalizer)
    losses = jnp.mean(optax.losses.sigmoid_binary_cross_entropy(logits, targets), axis=(-2, -1))
    return jnp.sum(jnp.where(positive, losses, 0.0)) / normalizer


def softmax_mask_loss(logits, targets, classes, positive, *, normalizer):
    """Computes the cross-entropy over classes at each pixel of the masks, as in table 2b.

    Args:
      logits: [..., regions, h, w, 1 + classes], background first.
      targets: [..., regions, h, w]; from one half a pixel has the region's class, below it is
        background.
      classes: [..., regions] integers.
      positive: bool [..., regions].
      normalizer: scalar, the number of positive regions.
    """
    chex.assert_shape(logits, (..., None, None, None, None), custom_message="logits")
    chex.assert_shape(targets, logits.shape[:-1], custom_message="targets")
    chex.assert_shape(classes, logits.shape[:-3], custom_message="classes")
    chex.assert_type(classes, int, custom_message="classes")
    _check_flags(positive, logits.shape[:-3], "positive")
    _check_normalizer(normalizer)
    labels = jnp.where(targets >= 0.5, classes[..., None, None], 0)
    losses = softmax_cross_entropy(logits, labels)
    losses = jnp.mean(losses, axis=(-2, -1))
    return jnp.sum(jnp.where(positive, losses, 0.0)) / normalizer


def _check_flags(flags, shape, name):
    chex.assert_shape(flags, shape, custom_message=name)
    chex.assert_type(flags, bool, custom_message=name)


def _check_normalizer(normalizer):
    chex.assert_shape(normalizer, (), custom_message="normalizer")
