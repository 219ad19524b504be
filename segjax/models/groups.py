"""Regions a group at a time: what nobody looks at is not computed, with shapes that are fixed.

Groups that have no active region in any image are skipped. So that this saves anything, active
regions come first in each image.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.dtypes import sum_dtype


def over_groups(function: Callable, regions, active, *, size: int):
    """Computes `function(regions)` of a few regions of each image at a time.

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
    groups = _split((regions, active), size)

    def zeros(group):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, group))

    def of_group(operands):
        group, active = operands
        return lax.cond(jnp.any(active), function, zeros, group)

    def join(x):
        return x.swapaxes(0, 1).reshape(batch, -1, *x.shape[3:])[:, :count]

    return jax.tree.map(join, lax.map(of_group, groups))


def sum_over_groups(function: Callable, operands, regions, active, *, size: int):
    """Computes sums of `function(operands, regions)` of a few regions of each image at a time.

    A sum's terms have the same cotangent: their gradients are added up as soon as each is computed,
    and no more than one group is kept for the backward pass.

    Args:
      function: as of `over_groups`, but to a float32 scalar, a sum over regions, and a tree of
        other such sums that are only reported.
      operands: a tree of float arrays; the gradient is of these alone, of the scalar alone, and of
        first order.
      regions, active, size: as of `over_groups`.

    Returns:
      The scalar and the tree.
    """
    groups, active = _split((regions, active), size)
    return _sum(function, operands, groups, jnp.any(active, axis=(1, 2)))


def _split(tree, size):
    """[batch, regions, ...] → [groups, batch, n, ...], with zeros behind the regions."""
    batch, count = jax.tree.leaves(tree)[0].shape[:2]
    groups = max(math.ceil(count / size), 1)
    size = math.ceil(count / groups)  # 100 regions are 7 × 15 rather than 7 × 16

    def split(x):
        padding = [(0, 0), (0, groups * size - count)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, groups, size, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def _add_up(of_group, groups, active, zeros):
    """The sum of the trees `of_group(group)` over the groups up to the last active one."""
    number = jnp.max(jnp.where(active, jnp.arange(1, active.size + 1), 0))

    def add(index, sums):
        group = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), groups)
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, of_group(group))

    return lax.fori_loop(0, number, add, zeros)


def _zeros_of(of_group, groups):
    """Zeros like the tree `of_group(group)`."""
    group = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), groups)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_group, group))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(function, operands, groups, active):
    of_group = functools.partial(function, operands)
    return _add_up(of_group, groups, active, _zeros_of(of_group, groups))


def _forward(function, operands, groups, active):
    of_group = functools.partial(jax.value_and_grad(function, has_aux=True), operands)
    # Of a lower precision, the sum of many groups would lose what each adds.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x)), operands)
    sums = _zeros_of(functools.partial(function, operands), groups)
    sums, gradient = _add_up(of_group, groups, active, (sums, zeros))
    gradient = jax.tree.map(lambda x, like: x.astype(like.dtype), gradient, operands)
    return sums, gradient


def _backward(function, gradient, cotangents):
    del function
    cotangent, _ = cotangents
    gradient = jax.tree.map(lambda x: x * cotangent.astype(x.dtype), gradient)
    return gradient, None, None


_sum.defvjp(_forward, _backward)
