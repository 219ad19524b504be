"""The selection of a class against indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.classes import select_class


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_it_takes_one_entry_of_the_axis_for_each_element(axis, dtype):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(5, 4, 3, 4)), dtype)
    classes = rng.integers(0, values.shape[axis], 5)
    found, pull_back = jax.vjp(lambda x: select_class(x, classes, axis=axis), values)
    expected = [np.take(np.asarray(values[i]), classes[i], axis % 4 - 1) for i in range(5)]
    np.testing.assert_array_equal(found, np.stack(expected))
    assert found.dtype == dtype
    (gradient,) = pull_back(jnp.ones_like(found))
    own = np.zeros(values.shape)
    for i in range(5):
        np.moveaxis(own[i], axis % 4 - 1, 0)[classes[i]] = 1
    np.testing.assert_array_equal(gradient, own)


def test_other_classes_may_hold_anything_and_an_unknown_class_is_zero():
    values = np.array([[np.nan, 2.0], [np.inf, -1.0], [5.0, 6.0]], np.float32)
    found = jax.jit(select_class)(values, np.array([1, 1, 2], np.int32))
    np.testing.assert_array_equal(found, [2, -1, 0])


def test_its_gradient_neither_scatters_nor_sorts():
    def loss(values, classes):
        return select_class(values, classes).sum()

    traced = jax.jit(jax.grad(loss)).trace(np.ones((6, 5, 4), np.float32), np.ones((6,), np.int32))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert not any(f"stablehlo.{each}" in program for each in ("gather", "scatter", "sort"))


def test_an_axis_among_those_of_the_classes_is_refused():
    with pytest.raises(ValueError, match="axis 0 of the classes is one of the 1 first axes"):
        select_class(np.ones((3, 2), np.float32), np.ones(3, np.int32), axis=0)
    with pytest.raises(AssertionError, match=r"\[classes\]"):
        select_class(np.ones((3, 2), np.float32), np.ones(3, np.float32))
    with pytest.raises(AssertionError, match=r"\[classes\]"):
        select_class(np.ones((3, 2), np.float32), np.ones(2, np.int32))
