"""Regions a group at a time: what nobody looks at is not computed, with shapes that are fixed."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

# Constants and rearranged arrays: a group's gradient makes them again. Stored for every group, with
# the kernels that they are copies of, they would double the memory of Mask R-CNN's masks.
MOVES = (lax.broadcast_in_dim_p, lax.reshape_p, lax.slice_p, lax.squeeze_p, lax.transpose_p)


def over_groups(function: Callable, regions, active, *, size: int):
    """Computes `function(regions)` of a few regions of each image at a time.

    Groups that have no active region in any image are skipped. So that this saves anything, active
    regions come first in each image.

    Args:
      function: pure, and without collectives, since devices skip different groups: a tree of
        [batch, n, ...] → a tree of [batch, n, ...], each region for itself.
      regions: a tree of [batch, regions, ...].
      active: [batch, regions] bool.
      size: the most regions of an image in a group.

    Returns:
      The tree of `function(regions)`, [batch, regions, ...]; zeros, without a gradient, in the
      groups that are skipped.
    """
    batch, count = active.shape
    groups = max(math.ceil(count / size), 1)
    size = math.ceil(count / groups)  # 100 regions are 7 × 15 rather than 7 × 16

    def split(x):
        padding = [(0, 0), (0, groups * size - count)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, groups, size, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(batch, groups * size, *x.shape[3:])[:, :count]

    def zeros(group):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, group))

    def of_group(operands):
        group, active = operands
        return lax.cond(jnp.any(active), function, zeros, group)

    saving = jax.checkpoint(of_group, prevent_cse=False, policy=_is_stored)
    return jax.tree.map(join, lax.map(saving, jax.tree.map(split, (regions, active))))


def _is_stored(primitive, *_, **__) -> bool:
    """Whether a group's gradient finds the result of a primitive, or computes it again."""
    return primitive not in MOVES
