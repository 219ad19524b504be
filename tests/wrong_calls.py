"""What the tests of wrong calls share: arrays without values, and a call that is only traced."""

import jax
import jax.numpy as jnp
import pytest

KEY = jax.eval_shape(jax.random.key, 0)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def flags(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bool_)


def trace(function, arguments: dict):
    """Traces a call. Arguments, or lists of them, without values are traced; others are static."""

    def has_array(value):
        return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(value))

    static = {name: value for name, value in arguments.items() if not has_array(value)}
    traced = {name: value for name, value in arguments.items() if has_array(value)}
    return jax.eval_shape(lambda traced: function(**traced, **static), traced)


def calls(table: dict):
    """The parameters of a test from {name: (function, right arguments, [(argument, wrong)])}."""
    return [
        pytest.param(function, arguments | {argument: wrong}, argument, id=f"{name}-{argument}-{i}")
        for name, (function, arguments, mistakes) in table.items()
        for i, (argument, wrong) in enumerate(mistakes)
    ]
