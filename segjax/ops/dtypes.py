"""The dtype of sums."""

import jax.numpy as jnp


def sum_dtype(x):
    """Returns float64 for float64 arrays, otherwise float32.

    In a lower precision, a sum of many small terms would lose them.
    """
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
