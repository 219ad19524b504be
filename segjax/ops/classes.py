"""Selection of one class among values for all classes."""

import chex
import jax.numpy as jnp
from jax import lax


def select_class(values, classes, *, axis: int = -1):
    """Selects the entry of each element's class along an axis of classes.

    The class is found by comparison with its index. A gather's gradient is a scatter, which XLA
    turns into a sort of all elements where GPUs must give the same bits each time.

    Args:
      values: [..., classes, ...] of a float dtype. Axes after those of `classes` share its entries.
      classes: integers, whose axes are the first of `values`, before `axis`.
      axis: the axis of classes.

    Returns:
      `values` without that axis; 0 where the class is none of its indices.
    """
    chex.assert_type(classes, int, custom_message="classes")
    axis %= values.ndim
    chex.assert_shape(classes, values.shape[: classes.ndim], custom_message="classes")
    if axis < classes.ndim:
        raise ValueError(f"axis {axis} of the classes is one of the {classes.ndim} first axes")
    index = lax.broadcasted_iota(jnp.int32, values.shape, axis)
    own = jnp.asarray(classes, jnp.int32).reshape(
        *classes.shape, *[1] * (values.ndim - classes.ndim)
    )
    # A sum would raise bfloat16 to float32 and back; only one entry is not zero.
    return jnp.sum(jnp.where(index == own, values, 0), axis, dtype=values.dtype)
