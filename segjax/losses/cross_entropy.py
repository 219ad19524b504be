"""Cross-entropy over pixels, with an ignored label and pixel weights."""

import jax
import jax.numpy as jnp
import optax

from segjax.ops.devices import mean_over_devices

IGNORE_LABEL = 255


def pixel_cross_entropy(logits, labels, *, ignore_label: int = IGNORE_LABEL):
    """Computes the cross-entropy of each pixel, zero where the label is ignored.

    Args:
      logits: [..., classes], computed with in float32 whatever float they are.
      labels: [...] integers; `ignore_label` marks pixels that count for nothing. Any other that is
        no class gives NaN.

    Returns:
      [...] float32 in nats.
    """
    valid = labels != ignore_label
    # Optax gives NaN for a label outside the classes, and NaN · 0 is NaN: replace it beforehand.
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), jnp.where(valid, labels, 0)
    )
    return jnp.where(valid, losses, 0.0)


def mean_valid_pixels(labels, *, ignore_label: int = IGNORE_LABEL):
    """Counts the valid pixels of an image, on average over the batch on all devices.

    Args:
      labels: [batch, height, width].

    Returns:
      [batch] float32, the same number for each image: the `normalizer` of `cross_entropy`.
    """
    count = jnp.mean(jnp.sum(labels != ignore_label, axis=(1, 2)).astype(jnp.float32))
    return jnp.broadcast_to(mean_over_devices(count), labels.shape[:1])


def cross_entropy(logits, labels, *, weights=None, normalizer=None, ignore_label=IGNORE_LABEL):
    """Computes E = Σ w(x)·ce(x) / (number of valid pixels).

    Equation 1 of the U-Net paper is the sum alone; the mean makes learning rates independent of
    the size of the tiles. With `mean_valid_pixels` of the whole batch on all devices as normaliser,
    the mean of this loss over devices and micro-batches is the loss of the whole batch, however the
    ignored pixels are spread; with a normaliser of each device's own it would not be. A batch
    without a valid pixel has loss and gradient zero.

    Args:
      logits: [batch, height, width, classes].
      labels: [batch, height, width] integers.
      weights: [batch, height, width] float32, or None for ones. They do not enter the normaliser.
      normalizer: [batch] pixels per image; None takes this batch's `mean_valid_pixels`.

    Returns:
      A float32 scalar.
    """
    losses = pixel_cross_entropy(logits, labels, ignore_label=ignore_label)
    if weights is not None:
        losses = losses * weights
    if normalizer is None:
        normalizer = mean_valid_pixels(labels, ignore_label=ignore_label)
    return jnp.mean(jnp.sum(losses, axis=(1, 2)) / jnp.maximum(normalizer, 1e-6))


def hard_pixel_cross_entropy(
    logits, labels, *, share: float, weights=None, ignore_label: int = IGNORE_LABEL
):
    """Computes the mean cross-entropy of the `share` of each image's pixels where it is largest.

    Hard-pixel mining as detectron2's DeepLab has it, with 0.2: the share is of all pixels, ignored
    ones included, whose loss is zero. Taken image by image here, so that the result does not depend
    on how a batch is spread over devices; detectron2 takes it over the batch of a device.

    Args:
      logits: [batch, height, width, classes].
      labels: [batch, height, width] integers.
      weights: [batch, height, width] float32, or None for ones.

    Returns:
      A float32 scalar.
    """
    losses = pixel_cross_entropy(logits, labels, ignore_label=ignore_label)
    if weights is not None:
        losses = losses * weights
    losses = losses.reshape(losses.shape[0], -1)
    return jnp.mean(jax.lax.top_k(losses, max(1, int(share * losses.shape[1])))[0])
