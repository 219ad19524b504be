"""What functions need to know of devices: sums over them, and maps whose rows they share.

Training maps a step over the axis `AXIS_NAME`. Each function here checks, when it is traced,
whether the axis is bound. Without the axis, sums and means are those of the single device. So
callers pass no information about devices, and cannot pass wrong information.

The other strategy has no such axis: it traces the step for the whole batch, inside a mesh with the
axes `DATA_AXIS` and `ROWS_AXIS`, and XLA divides each array. There, too, sums and means are those
of all examples. Only the form of a few operations depends on the mesh; see `rows_are_shared`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS_NAME = "devices"
DATA_AXIS, ROWS_AXIS = "data", "rows"
# On a mesh of 2 × 2, XLA computes wrong convolutions of maps with one or two rows for each device,
# without a word, and on 2 × 4 it ends with an error. If only the examples of such maps are divided,
# it doubles the kernel gradients of depthwise convolutions (jax 0.12.0.1).
MIN_ROWS = 4


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


def rows_are_shared() -> bool:
    """Whether several devices share the rows of each map, inside a mesh with `ROWS_AXIS`.

    Operations on maps then keep to forms that XLA divides with an exchange of the rows at the
    borders. It gathers whole maps for others: products of flattened maps and loops over rows.
    """
    return row_shares() > 1


def share_rows(x, *, least: int | None = None):
    """Lets the devices of a mesh with `ROWS_AXIS` share the rows of [batch, height, ...].

    XLA finds most layouts by itself, but gives up where it cannot decide between two; then all that
    follows is computed whole on every device. Without such a mesh, x stays as it is.

    Args:
      least: the height of the smallest map that an operation reads or gives, if that is not x.
        Below `MIN_ROWS` rows for each device, every device has the maps of the whole batch.
    """
    if not rows_are_shared():
        return x
    shared = can_share(x.shape[1] if least is None else least)
    spec = PartitionSpec(DATA_AXIS, ROWS_AXIS) if shared else PartitionSpec()
    return jax.lax.with_sharding_constraint(x, spec)


def can_share(height: int) -> bool:
    """Whether maps of this height have rows enough for the devices that would share them."""
    return height >= MIN_ROWS * row_shares()


def row_shares() -> int:
    """Returns the number of devices that share the rows of a map; 1 outside of such a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(ROWS_AXIS, 1)


def share_examples(x):
    """Divides the examples of [parts, batch, ...] over a mesh with `DATA_AXIS`, within each part.

    Otherwise each device would keep the parts that its share of the whole batch falls into, and
    compute parts of others alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA_AXIS not in mesh.shape:
        return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(None, DATA_AXIS, *rest))
