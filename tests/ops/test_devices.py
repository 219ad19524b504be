"""Sums, means and random keys over the devices, with the device axis and without it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.devices import (
    AXIS_NAME,
    bound_axis,
    device_count,
    fold_in_device,
    mean_count,
    mean_over_devices,
    sum_over_devices,
)

VALUES = np.array([[1.0, 2.0], [3.0, 6.0], [0.0, 1.0], [0.0, 3.0]], np.float32)


def over_devices(function, values, axis_name=AXIS_NAME):
    devices = jax.devices()[: len(values)]
    return np.asarray(jax.pmap(function, axis_name=axis_name, devices=devices)(values))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sums_and_means_are_over_all_devices_of_a_map(count):
    values = VALUES[:count]
    np.testing.assert_allclose(over_devices(sum_over_devices, values)[-1], values.sum(axis=0))
    np.testing.assert_allclose(over_devices(mean_over_devices, values)[-1], values.mean(axis=0))


def test_without_the_axis_they_return_what_they_are_given():
    assert (bound_axis(), device_count()) == (None, None)
    for function in (sum_over_devices, mean_over_devices):
        np.testing.assert_array_equal(jax.jit(function)(VALUES), VALUES)
        np.testing.assert_array_equal(over_devices(function, VALUES, axis_name=None), VALUES)


def test_a_compiled_function_is_traced_again_inside_a_map():
    compiled = jax.jit(mean_over_devices)
    np.testing.assert_array_equal(compiled(VALUES[0]), VALUES[0])
    np.testing.assert_array_equal(over_devices(compiled, VALUES)[0], VALUES.mean(axis=0))
    np.testing.assert_array_equal(compiled(VALUES[0]), VALUES[0])


def test_each_device_has_its_own_key_and_no_device_axis_keeps_the_key():
    key = jax.random.key(0)
    np.testing.assert_array_equal(*map(jax.random.key_data, (fold_in_device(key), key)))
    draws = over_devices(lambda x: x + jax.random.uniform(fold_in_device(key)), np.zeros(4))
    assert len(set(draws)) == 4


def test_losses_divided_by_the_mean_count_average_to_that_of_the_whole_batch():
    marked = VALUES > 0.5

    def share(values):
        used = values > 0.5
        return jnp.sum(jnp.where(used, values, 0.0)) / mean_count(used)

    np.testing.assert_allclose(over_devices(share, VALUES).mean(), VALUES[marked].mean())
    np.testing.assert_allclose(jax.jit(share)(VALUES), VALUES[marked].mean())
    nothing = partial(np.zeros, (4, 2), bool)
    np.testing.assert_allclose(over_devices(mean_count, nothing()), 0.25)
    np.testing.assert_allclose(mean_count(nothing()), 1.0)
