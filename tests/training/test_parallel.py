"""Placing trees and batches on devices, and the shapes that mapped functions see."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training.parallel import (
    AXIS_NAME,
    DataParallel,
    gather_bytes,
    is_main_process,
    wait_for_all,
)

TREE = {
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.int32(7),
    "empty": {},
    "half": np.ones(2, jnp.bfloat16),
}


def first(count):
    return DataParallel(tuple(jax.devices()[:count]))


def batch(size, start=0):
    numbers = np.arange(start, start + size, dtype=np.int32)
    return {"index": numbers, "image": np.tile(numbers[:, None], (1, 3)).astype(np.float32)}


def test_one_process_is_the_main_one_and_waits_for_nobody():
    assert is_main_process()
    wait_for_all("here")
    assert gather_bytes(b"\x00payload\xff") == [b"\x00payload\xff"]
    assert gather_bytes(b"") == [b""]


def test_all_devices_are_taken_if_none_are_named():
    assert list(DataParallel().mesh.devices.flat) == jax.devices()
    assert DataParallel().local_devices == jax.devices()
    assert first(2).local_devices == jax.devices()[:2]


@pytest.mark.parametrize("count", [1, 4])
def test_trees_keep_their_values_wherever_they_are_put(count):
    parallel = first(count)
    replicated = parallel.replicate(TREE)
    for placed in (replicated, parallel.as_global(replicated), parallel.local(replicated)):
        chex.assert_trees_all_equal(jax.device_get(placed), TREE)
        chex.assert_trees_all_equal_dtypes(placed, TREE)
        for leaf in jax.tree.leaves(placed):
            assert leaf.sharding.device_set == set(parallel.local_devices)
            assert leaf.is_fully_replicated
            assert {shard.data.shape for shard in leaf.addressable_shards} == {leaf.shape}


def test_as_global_copies_nothing():
    replicated = first(2).replicate(TREE)
    found = first(2).as_global(replicated)
    for old, new in zip(jax.tree.leaves(replicated), jax.tree.leaves(found), strict=True):
        pairs = zip(old.addressable_shards, new.addressable_shards, strict=True)
        assert all(
            a.data.unsafe_buffer_pointer() == b.data.unsafe_buffer_pointer() for a, b in pairs
        )


@pytest.mark.parametrize("count", [1, 2, 4])
def test_prefetch_keeps_the_order_and_gives_each_device_its_part(count):
    batches = [batch(8, start=8 * k) for k in range(5)]
    pairs = list(first(count).prefetch(iter(batches)))
    assert [id(host) for host, _ in pairs] == [id(given) for given in batches]
    for host, on_devices in pairs:
        chex.assert_trees_all_equal_dtypes(on_devices, host)
        for name, value in on_devices.items():
            for place, shard in enumerate(value.addressable_shards):
                part = host[name][place * 8 // count : (place + 1) * 8 // count]
                assert shard.device == jax.devices()[place]
                np.testing.assert_array_equal(shard.data[0], part)


def test_prefetch_reads_ahead_by_its_size_and_no_further():
    taken = itertools.count()
    feed = first(2).prefetch((batch(2, start=next(taken)) for _ in range(10)), size=3)
    next(feed)
    assert next(taken) == 4  # the one yielded and three more
    assert [int(host["index"][0]) for host, _ in feed][:3] == [1, 2, 3]
    assert list(first(2).prefetch(iter([]))) == []


def test_a_step_sees_its_part_of_the_batch_and_a_state_without_a_device_axis():
    seen = []

    def step(state, batch):
        seen.append(jax.tree.map(jnp.shape, (state, batch)))
        total = jax.lax.psum(jnp.sum(batch["index"]), AXIS_NAME)
        return state + total, {"total": total}

    parallel = first(4)
    compiled = parallel.train_step(step)
    state = parallel.replicate(np.zeros(3, np.int32))
    for _, on_devices in parallel.prefetch(iter([batch(8), batch(8, start=8)])):
        state, metrics = compiled(state, on_devices)
    assert set(map(str, seen)) == {str(((3,), {"image": (2, 3), "index": (2,)}))}
    assert state.shape == (3,)
    assert metrics["total"].shape == ()
    np.testing.assert_array_equal(state, 3 * [sum(range(16))])
    assert state.sharding.device_set == set(parallel.local_devices)


def test_a_step_takes_the_place_of_the_state_that_it_is_given():
    parallel = first(2)
    state = parallel.replicate(np.zeros(3, np.float32))
    ((_, on_devices),) = parallel.prefetch(iter([batch(2)]))
    new, _ = parallel.train_step(lambda state, batch: (state + 1.0, {}))(state, on_devices)
    assert state.is_deleted()
    np.testing.assert_array_equal(new, np.ones(3))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_predictions_come_back_in_the_order_of_the_batch_as_numpy_arrays(count):
    seen = []

    def predict(variables, batch):
        seen.append(jax.tree.map(jnp.shape, (variables, batch)))
        return {"tripled": variables * batch["image"], "sum": jnp.sum(batch["image"], axis=1)}

    parallel = first(count)
    variables = parallel.local(parallel.replicate(np.float32(3)))
    given = batch(8)
    compute = parallel.predict_step(predict)(variables, {"image": given["image"]})
    found = compute()
    assert seen == [((), {"image": (8 // count, 3)})]
    assert {type(value) for value in found.values()} == {np.ndarray}
    np.testing.assert_array_equal(found["tripled"], 3 * given["image"])
    np.testing.assert_array_equal(found["sum"], given["image"].sum(axis=1))
