"""Applies a function to regions in fixed-size groups and skips inactive groups.

A group is skipped if it has no active region in any image. Put each image's active regions first;
otherwise few groups can be skipped. Small groups would leave most of a GPU or TPU idle: GPUs sum
over larger groups, and TPUs over all regions at once.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.dtypes import sum_dtype
from segjax.ops.platforms import by_platform

JOINED = 4  # number of groups that GPUs sum over at once


def over_groups(function: Callable, regions, active, *, size: int):
    """Computes `function(regions)`, a few regions of each image at a time.

    Args:
      function: maps a tree of [batch, n, ...] to a tree of [batch, n, ...], each region on its own.
        It is pure and has no collectives, since devices skip different groups.
      regions: a tree of [batch, regions, ...].
      active: [batch, regions] bool.
      size: largest number of an image's regions in a group.

    Returns:
      The tree of `function(regions)`, [batch, regions, ...]. Skipped groups hold zeros and have no
      gradient.
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
    """Sums `function(operands, regions)` over groups of a few regions of each image.

    All terms of a sum have the same cotangent, so each group's gradient is added up as soon as it
    is computed, and on CPU the backward pass keeps one group at most.

    Args:
      function: returns a float32 scalar, a sum over regions, and a tree of other such sums that are
        only reported. Inactive regions add zero to all of them. It is pure and has no collectives,
        as in `over_groups`.
      operands: a tree of float arrays. Only the scalar's first-order gradient with respect to them
        is defined.
      regions, active, size: as in `over_groups`.

    Returns:
      The scalar and the tree.
    """
    groups, active = _split((regions, active), size)
    return _sum(function, operands, groups, jnp.any(active, axis=(1, 2)))


def _split(tree, size):
    """[batch, regions, ...] → [groups, batch, n, ...], padded with zeros at the end."""
    batch, count = jax.tree.leaves(tree)[0].shape[:2]
    groups = max(math.ceil(count / size), 1)
    size = math.ceil(count / groups)  # 100 regions are 7 × 15 rather than 7 × 16

    def split(x):
        padding = [(0, 0), (0, groups * size - count)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(batch, groups, size, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(split, tree)


def _sums(of_group, groups, active, zeros):
    """Sums the trees `of_group(group)` over the groups, in the form of the platform."""
    return by_platform(
        groups,
        active,
        zeros,
        cpu=functools.partial(_add_up, of_group),
        cuda=functools.partial(_add_up_joined, of_group),
        default=functools.partial(_all_at_once, of_group),
    )


def _all_at_once(of_group, groups, active, zeros):
    """Computes the sums over one group of all regions."""
    del active

    def join(x):
        return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])

    sums = of_group(jax.tree.map(join, groups))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), sums, zeros)


def _add_up_joined(of_group, groups, active, zeros):
    """Sums over the groups a few at once, up to the last active one."""
    together = min(JOINED, active.size)
    number = -(-active.size // together)
    missing = number * together - active.size

    def join(x):
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        x = x.reshape(number, together, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(*x.shape[:2], together * x.shape[3], *x.shape[4:])

    active = jnp.pad(active, (0, missing)).reshape(number, together)
    return _add_up(of_group, jax.tree.map(join, groups), jnp.any(active, axis=1), zeros)


def _add_up(of_group, groups, active, zeros):
    """Sums over the groups one by one, up to the last active one."""
    number = jnp.max(jnp.where(active, jnp.arange(1, active.size + 1), 0))

    def add(index, sums):
        group = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), groups)
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, of_group(group))

    with jax.named_scope("groups"):
        return lax.fori_loop(0, number, add, zeros)


def _zeros_of(of_group, groups):
    """Returns zeros with the tree and shapes of `of_group(group)`."""
    group = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), groups)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_group, group))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(function, operands, groups, active):
    of_group = functools.partial(function, operands)
    return _sums(of_group, groups, active, _zeros_of(of_group, groups))


def _forward(function, operands, groups, active):
    of_group = functools.partial(jax.value_and_grad(function, has_aux=True), operands)
    # In a lower precision, a sum over many groups would lose their small terms.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_dtype(x)), operands)
    sums = _zeros_of(functools.partial(function, operands), groups)
    sums, gradient = _sums(of_group, groups, active, (sums, zeros))
    gradient = jax.tree.map(lambda x, like: x.astype(like.dtype), gradient, operands)
    return sums, gradient


def _backward(function, gradient, cotangents):
    del function
    cotangent, _ = cotangents
    gradient = jax.tree.map(lambda x: x * cotangent.astype(x.dtype), gradient)
    return gradient, None, None


_sum.defvjp(_forward, _backward)
