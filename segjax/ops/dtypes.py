"""The dtype that sums have."""

import jax.numpy as jnp


def sum_dtype(x):
    """Returns float32 for arrays of lower precision: sums of many small terms would lose them."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32
