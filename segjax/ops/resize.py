"""Bilinear resizing of feature maps, by either convention of where the corners lie."""

import jax.numpy as jnp
import numpy as np


def resize_bilinear(x, size: tuple[int, int], *, align_corners: bool):
    """Resizes maps bilinearly, without antialiasing.

    With `align_corners` the centres of the corner pixels stay in place, so that 33 → 513 puts
    input pixel i on output pixel 16·i: TensorFlow DeepLab and Caffe's Interp layer. Without, pixels
    are squares and the outer edges stay in place: PyTorch's default.

    Args:
      x: [batch, height, width, channels].
      size: height and width of the result.

    Returns:
      [batch, *size, channels] of the same dtype.
    """
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != length:
            weights = _interpolation_matrix(x.shape[axis], length, align_corners)
            x = jnp.moveaxis(
                jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,))), -1, axis
            )
    return x


def _interpolation_matrix(old: int, new: int, align_corners: bool) -> np.ndarray:
    """The weights [new, old] of each old position in each new one."""
    if align_corners:
        position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        position = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(old)[None, :]), 0)
