"""Sums and means over the mapped axis of devices, for functions that run with or without one.

Training maps a step over this axis. Each function here checks, when it is traced, whether the axis
is bound. Without the axis, sums and means are those of the single device. So callers pass no
information about devices, and cannot pass wrong information.
"""

import jax
import jax.numpy as jnp

AXIS_NAME = "devices"


def bound_axis() -> str | None:
    """Returns the name of the device axis inside a map over it, and None outside."""
    return AXIS_NAME if device_count() is not None else None


def device_count() -> int | None:
    """Returns the size of the device axis inside a map over it, and None outside."""
    try:
        return jax.lax.axis_size(AXIS_NAME)
    except NameError:  # how JAX reports an axis that is not bound
        return None


def sum_over_devices(tree):
    """Sums each array of a tree over the devices."""
    # XLA would copy every array for a sum over one device.
    return tree if device_count() in (None, 1) else jax.lax.psum(tree, AXIS_NAME)


def mean_over_devices(tree):
    """Averages each array of a tree over the devices."""
    return tree if device_count() in (None, 1) else jax.lax.pmean(tree, AXIS_NAME)


def fold_in_device(key):
    """Returns a different random key on each device; without a device axis, returns the key."""
    if device_count() is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS_NAME))


def mean_count(marked):
    """Counts the marked entries of a device's batch, averaged over the devices.

    Divide the sum of a loss over a device's marked entries by this count. The mean of the quotients
    over the devices is then the mean loss over the marked entries of the whole batch.

    Args:
      marked: bool, any shape.

    Returns:
      A float32 scalar. The total over all devices is taken as at least 1.
    """
    total = sum_over_devices(jnp.sum(marked, dtype=jnp.float32))
    return jnp.maximum(total, 1.0) / (device_count() or 1)
