"""The soft Dice loss: Milletari et al., V-Net, 2016 (arXiv:1606.04797), in nnU-Net's form."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from segjax.labels import IGNORE_LABEL
from segjax.ops.devices import sum_over_devices


def dice_loss(
    logits,
    labels,
    *,
    over: Literal["sample", "batch"] = "sample",
    without: int | None = None,
    smooth: float = 1e-5,
    ignore_label: int = IGNORE_LABEL,
) -> jax.Array:
    """Computes 1 − mean over classes of (2·Σ p·y + smooth) / (Σ p + Σ y + smooth).

    A class that is neither labelled nor predicted has a Dice score of 1. A class that is predicted
    but not labelled has a score near 0.

    Args:
      logits: [batch, height, width, classes]; p is their softmax, in float32.
      labels: [batch, height, width] integers; y is their one-hot form. Ignored pixels enter no sum.
      over: "sample" sums over each image and averages the images' scores. "batch" sums over the
        whole batch on all devices (nnU-Net's batch Dice), which is steadier for small structures
        that many images lack. Each micro-batch of a step has its own sums.
      without: a class that does not count, such as the background; None counts all.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: `over` is neither "sample" nor "batch".
    """
    if over not in ("sample", "batch"):
        raise ValueError(f"over={over!r}; expected 'sample' or 'batch'")
    chex.assert_rank(logits, 4, custom_message="logits")
    chex.assert_type(logits, float, custom_message="logits")
    chex.assert_shape(labels, logits.shape[:-1], custom_message="labels")
    chex.assert_type(labels, int, custom_message="labels")
    valid = (labels != ignore_label)[..., None]
    truth = jax.nn.one_hot(jnp.where(valid[..., 0], labels, 0), logits.shape[-1])
    truth = jnp.where(valid, truth, 0.0)
    probabilities = jnp.where(valid, jax.nn.softmax(logits.astype(jnp.float32)), 0.0)
    intersection, total = (
        jnp.sum(value, axis=(1, 2)) for value in (probabilities * truth, probabilities + truth)
    )
    if without is not None:
        intersection, total = (jnp.delete(x, without, axis=1) for x in (intersection, total))
    if over == "batch":
        intersection, total = intersection.sum(axis=0), total.sum(axis=0)
        intersection, total = sum_over_devices((intersection, total))
    return 1.0 - jnp.mean((2.0 * intersection + smooth) / (total + smooth))
