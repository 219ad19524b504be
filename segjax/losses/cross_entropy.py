"""Cross-entropy over pixels, with an ignored label, weights and the focal loss."""

import chex
import jax
import jax.numpy as jnp

from segjax.labels import IGNORE_LABEL
from segjax.ops.classes import select_class
from segjax.ops.devices import mean_over_devices


def softmax_cross_entropy(logits, classes) -> jax.Array:
    """Computes log Σ exp(logits) − logit of the class: the cross-entropy of a softmax.

    Optax's function selects the logit by a gather instead; see `select_class`.

    Args:
      logits: [..., classes], float32.
      classes: [...] integers. A class outside 0 … classes − 1 gives NaN.

    Returns:
      [...] float32, in nats.
    """
    chosen = select_class(logits, classes)
    known = (classes >= 0) & (classes < logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(known, chosen, jnp.nan)


def pixel_cross_entropy(
    logits, labels, *, class_weights=None, focal: float = 0.0, ignore_label: int = IGNORE_LABEL
) -> jax.Array:
    """Computes −w·(1 − p)^γ·log p of each pixel; it is zero where the label is ignored.

    Here p is the softmax probability of the pixel's class, w the weight of the class and γ `focal`.
    With the defaults, w = 1 and γ = 0, this is the plain cross-entropy. Otherwise it is the focal
    loss of Lin et al., 2017 (arXiv:1708.02002, section 3.2, equation 5); the paper has a sigmoid
    for each class instead of the softmax.

    Args:
      logits: [..., classes] of any float dtype; the loss is computed in float32.
      labels: [...] integers; `ignore_label` marks ignored pixels. Any other label outside the
        classes gives NaN.
      class_weights: a factor for each class, or None for ones.
      focal: γ, 0 or more. The paper's best is 2.

    Returns:
      [...] float32, in nats.
    """
    chex.assert_shape(logits, (..., None), custom_message="logits")
    chex.assert_type(logits, float, custom_message="logits")
    chex.assert_shape(labels, logits.shape[:-1], custom_message="labels")
    chex.assert_type(labels, int, custom_message="labels")
    valid = labels != ignore_label
    # The ignored label is outside the classes, whose loss is NaN, and NaN · 0 is NaN: replace it.
    classes = jnp.where(valid, labels, 0)
    losses = softmax_cross_entropy(logits.astype(jnp.float32), classes)
    if focal:
        losses = losses * _power_of_error(losses, focal)
    if class_weights is not None:
        factors = jnp.asarray(class_weights, jnp.float32)
        chex.assert_shape(factors, logits.shape[-1:], custom_message="class_weights")
        losses = losses * select_class(jnp.broadcast_to(factors, logits.shape), classes)
    return jnp.where(valid, losses, 0.0)


def _power_of_error(losses, gamma: float):
    """Computes (1 − p)^gamma from −log p, with a finite gradient for each p from 0 to 1."""
    error = -jnp.expm1(-losses)  # 1 − p, exact near p = 1
    # Below an exponent of 1, a power's slope is infinite at zero: keep zero out of it.
    return jnp.where(error > 0, jnp.where(error > 0, error, 1.0) ** gamma, 0.0)


def mean_valid_pixels(labels, *, ignore_label: int = IGNORE_LABEL):
    """Counts the valid pixels per image, averaged over the batch on all devices.

    Args:
      labels: [batch, height, width] integers.

    Returns:
      [batch] float32, the same number for each image: the `normalizer` of `cross_entropy`.
    """
    chex.assert_rank(labels, 3, custom_message="labels")
    chex.assert_type(labels, int, custom_message="labels")
    count = jnp.mean(jnp.sum(labels != ignore_label, axis=(1, 2)).astype(jnp.float32))
    return jnp.broadcast_to(mean_over_devices(count), labels.shape[:1])


def cross_entropy(
    logits,
    labels,
    *,
    weights=None,
    class_weights=None,
    focal: float = 0.0,
    normalizer=None,
    ignore_label: int = IGNORE_LABEL,
) -> jax.Array:
    """Computes E = Σ w(x)·ce(x) / (number of valid pixels), with `pixel_cross_entropy` as ce.

    Equation 1 of the U-Net paper is the sum alone; the mean makes learning rates independent of the
    size of the tiles. The normaliser is `mean_valid_pixels` of the whole batch on all devices. The
    mean of this loss over devices and micro-batches is then the loss of the whole batch, however
    the ignored pixels are spread. With a normaliser for each device it would not be. A batch
    without valid pixels has zero loss and zero gradient.

    Neither pixel nor class weights enter the normaliser, as in TensorFlow DeepLab, and in
    mmsegmentation with `avg_non_ignore`. PyTorch divides by the sum of the class weights over the
    pixels instead: there, the weights do nothing in a batch of a single class, and doubling them
    all changes nothing. Here, doubling them doubles the loss.

    Args:
      logits: [batch, height, width, classes].
      labels: [batch, height, width] integers.
      weights: [batch, height, width] float32, or None for ones.
      class_weights, focal: see `pixel_cross_entropy`.
      normalizer: [batch], pixels per image; None takes this batch's `mean_valid_pixels`.

    Returns:
      A float32 scalar.
    """
    losses = _weighted_pixels(logits, labels, weights, class_weights, focal, ignore_label)
    if normalizer is None:
        normalizer = mean_valid_pixels(labels, ignore_label=ignore_label)
    chex.assert_shape(normalizer, labels.shape[:1], custom_message="normalizer")
    return jnp.mean(jnp.sum(losses, axis=(1, 2)) / jnp.maximum(normalizer, 1e-6))


def hard_pixel_cross_entropy(
    logits,
    labels,
    *,
    share: float,
    weights=None,
    class_weights=None,
    focal: float = 0.0,
    ignore_label: int = IGNORE_LABEL,
) -> jax.Array:
    """Computes the mean cross-entropy of each image's hardest pixels, a `share` of all its pixels.

    This is the hard-pixel mining of detectron2's DeepLab, which uses a share of 0.2. Ignored pixels
    count with a loss of zero. The hardest pixels are those of the largest weighted loss. They are
    chosen in each image, so that the result does not depend on how a batch is spread over devices;
    detectron2 chooses them over a device's batch.

    Args:
      logits: [batch, height, width, classes].
      labels: [batch, height, width] integers.
      weights: [batch, height, width] float32, or None for ones.
      class_weights, focal: see `pixel_cross_entropy`.

    Returns:
      A float32 scalar.
    """
    losses = _weighted_pixels(logits, labels, weights, class_weights, focal, ignore_label)
    losses = losses.reshape(losses.shape[0], -1)
    return jnp.mean(jax.lax.top_k(losses, max(1, int(share * losses.shape[1])))[0])


def _weighted_pixels(logits, labels, weights, class_weights, focal, ignore_label):
    """Computes the loss of each pixel of a batch, times the weights of pixels and classes."""
    chex.assert_rank(logits, 4, custom_message="logits")
    losses = pixel_cross_entropy(
        logits, labels, class_weights=class_weights, focal=focal, ignore_label=ignore_label
    )
    if weights is None:
        return losses
    chex.assert_shape(weights, labels.shape, custom_message="weights")
    return losses * weights
