"""Bilinear resizing of feature maps, with corners aligned or not."""

import chex
import jax.numpy as jnp
from jax import lax


def resize_bilinear(x, size: tuple[int, int], *, align_corners: bool):
    """Resizes maps bilinearly, without antialiasing, in at least float32.

    With `align_corners`, the centres of the corner pixels stay in place, as in TensorFlow's DeepLab
    and Caffe's Interp layer: 33 → 513 puts input pixel i on output pixel 16·i. Without it, pixels
    are squares and the outer edges stay in place, as in PyTorch by default.

    Args:
      x: [batch, height, width, channels] of a float dtype.
      size: height and width of the result.

    Returns:
      [batch, *size, channels] of the same dtype.
    """
    chex.assert_rank(x, 4, custom_message="x")
    chex.assert_type(x, float, custom_message="x")
    chex.assert_equal(len(size), 2, custom_message="size")
    batch, height, width, channels = x.shape
    resized = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    # We multiply by matrices. A gather alone is faster, but XLA fuses it into every reader of the
    # result and recomputes it there. Its gradient is a scatter, which GPUs add in no fixed order.
    # The columns are resized first, while there are few rows; the rows then need no transposition.
    if width != size[1]:
        weights = _interpolation_matrix(width, size[1], align_corners, resized.dtype)
        resized = _product(resized, weights, (((2,), (1,)), ((), ()))).swapaxes(2, 3)
    if height != size[0]:
        weights = _interpolation_matrix(height, size[0], align_corners, resized.dtype)
        weights = jnp.broadcast_to(weights[None], (batch, *weights.shape))
        rows = resized.reshape(batch, height, size[1] * channels)
        rows = _product(weights, rows, (((2,), (1,)), ((0,), (0,))))
        resized = rows.reshape(batch, *size, channels)
    return resized.astype(x.dtype)


def _product(a, b, axes):
    # Highest: GPUs and TPUs would round float32 to 10 or 8 bits of mantissa.
    return lax.dot_general(a, b, axes, precision=lax.Precision.HIGHEST)


def _interpolation_matrix(old, new, align_corners, dtype):
    """Computes the weight [new, old] of each old position in each new one.

    Positions come from integer division, which is exact for any size. Sizes may be symbolic, as in
    `jax.export`.
    """
    i = jnp.arange(new)[:, None]
    if align_corners:
        dividend, divisor = i * (old - 1), jnp.maximum(new - 1, 1)
    else:
        dividend, divisor = (2 * i + 1) * old - new, jnp.asarray(2 * new)
        dividend = jnp.clip(dividend, 0, divisor * (old - 1))
    below, beyond = dividend // divisor, (dividend % divisor).astype(dtype) / divisor.astype(dtype)
    steps = jnp.arange(old)[None] - below
    return jnp.where(steps == 0, 1 - beyond, 0) + jnp.where(steps == 1, beyond, 0)
