"""Steps on one and several devices, with and without micro-batches; optimisers and schedules."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.data.loading.loader import training_batches
from segjax.losses import SemanticLoss
from segjax.models.layers import ConvolutionNorm
from segjax.ops.devices import AXIS_NAME
from segjax.training.optimizer import (
    OptimizerConfig,
    frozen_parameters,
    learning_rate_schedule,
    make_optimizer,
    matching,
)
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state, state_shapes
from segjax.training.step import make_train_step
from tests.training import tiny

MIXED_LOSS = SemanticLoss(cross_entropy=1.0, dice=1.0, dice_over="batch", dice_background=True)


def run_steps(config, *, devices, num_steps, micro_batches=1, ema_decay=None):
    """Returns the losses of the steps and the last state, on the first `devices` devices."""
    task = tiny.make_task(config)
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    schedule = learning_rate_schedule(config.optimizer, num_steps=num_steps, batch_size=8)
    optimizer = make_optimizer(config.optimizer, schedule)
    step = parallel.train_step(
        make_train_step(
            task,
            optimizer,
            schedule,
            seed=config.seed,
            micro_batches=micro_batches,
            ema_decay=ema_decay,
            frozen=functools.partial(frozen_parameters, config.optimizer),
        )
    )
    experiment = tiny.build(config)
    batches = training_batches(experiment.train(), experiment.transforms, batch_size=8, seed=1)
    first = next(batches)
    state = create_state(task, optimizer, seed=config.seed, batch=first, ema=ema_decay is not None)
    state = parallel.replicate(state)
    losses = []
    feed = parallel.prefetch(itertools.islice(itertools.chain([first], batches), num_steps))
    for _, batch in feed:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, jax.device_get(state)


@pytest.mark.parametrize(
    ("norm", "loss"), [(None, SemanticLoss()), ("batch", MIXED_LOSS)], ids=["plain", "batch norm"]
)
def test_one_two_and_four_devices_give_the_same_loss_curve(norm, loss):
    config = tiny.Config(workdir=Path(), norm=norm, loss=loss)
    one, two, four = (run_steps(config, devices=n, num_steps=20)[0] for n in (1, 2, 4))
    assert one[-1] < 0.8 * one[0]
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    np.testing.assert_allclose(four, one, rtol=0, atol=1e-5)


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    config = tiny.Config(workdir=Path())
    whole, whole_state = run_steps(config, devices=2, num_steps=3)
    parts, parts_state = run_steps(config, devices=2, num_steps=3, micro_batches=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    chex.assert_trees_all_close(parts_state.params, whole_state.params, rtol=1e-4, atol=1e-6)


def test_a_step_is_a_function_of_state_and_batch_dropout_included():
    config = tiny.Config(workdir=Path(), dropout_rate=0.5)
    first, second = (run_steps(config, devices=4, num_steps=3) for _ in range(2))
    assert first[0] == second[0]
    chex.assert_trees_all_equal(first[1], second[1])
    other, _ = run_steps(
        tiny.Config(workdir=Path(), dropout_rate=0.5, seed=1), devices=4, num_steps=3
    )
    assert other != first[0]


def test_devices_draw_different_dropout_masks():
    """With equal masks, two devices with the same example would equal one device with it."""
    task = tiny.make_task(tiny.Config(workdir=Path(), dropout_rate=0.5))
    optimizer = optax.sgd(0.0)
    example = tiny.Squares(1)[0]
    batch = {
        "image": np.stack([example["image"]] * 2) / 100,
        "labels": np.stack([example["labels"]] * 2).astype(np.int32),
    }
    state = create_state(task, optimizer, seed=0, batch=batch, ema=False)
    step = make_train_step(task, optimizer, optax.constant_schedule(0.0), seed=0)
    mapped = jax.pmap(
        step, axis_name=AXIS_NAME, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2]
    )
    both = mapped(state, jax.tree.map(lambda x: x[:, None], batch))[1]["loss"]
    single = jax.pmap(
        step, axis_name=AXIS_NAME, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:1]
    )
    one = single(state, jax.tree.map(lambda x: x[None, :1], batch))[1]["loss"]
    assert abs(float(both) - float(one)) > 1e-6


def test_moving_average_of_the_parameters_by_hand():
    config = tiny.Config(workdir=Path())
    states = [run_steps(config, devices=1, num_steps=n, ema_decay=0.75)[1] for n in (1, 2)]
    expected = jax.tree.map(
        lambda average, new: 0.75 * average + 0.25 * new, states[0].ema_params, states[1].params
    )
    chex.assert_trees_all_close(states[1].ema_params, expected, rtol=1e-5, atol=1e-7)
    assert states[1].variables["params"] is states[1].ema_params


def test_a_batch_that_does_not_divide_names_the_nearest_that_does():
    parallel = DataParallel(tuple(jax.devices()[:4]))
    parallel.check_batch_size(16, micro_batches=2)
    with pytest.raises(ValueError, match=r"batch of 12 .* 4 devices × 2 micro-batches.* 8 or 16"):
        parallel.check_batch_size(12, micro_batches=2)
    with pytest.raises(ValueError, match=r"that does is 4$"):
        parallel.check_batch_size(3)


def test_weight_decay_acts_on_kernels_only():
    config = OptimizerConfig(learning_rate=0.5, momentum=0.0, weight_decay=0.1, schedule="constant")
    schedule = learning_rate_schedule(config, num_steps=1, batch_size=1)
    params = {"a": {"kernel": np.ones(2, np.float32), "bias": np.ones(2, np.float32)}}
    for name, kernel in (("sgd", 0.95), ("adamw", 0.95)):
        optimizer = make_optimizer(OptimizerConfig(**{**vars(config), "name": name}), schedule)
        zeros = jax.tree.map(np.zeros_like, params)
        with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
            updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        new = optax.apply_updates(params, updates)["a"]
        np.testing.assert_allclose(new["kernel"], kernel, rtol=1e-6)
        np.testing.assert_array_equal(new["bias"], 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1]),
        ({"schedule": "poly", "power": 0.9}, [1, 0.5**0.9, 0]),
        ({"schedule": "poly", "power": 1.0, "end_learning_rate": 0.2}, [1, 0.6, 0.2]),
        ({"schedule": "cosine", "end_learning_rate": 0.2}, [1, 0.6, 0.2]),
        ({"schedule": "step", "step_boundaries": (0.5, 0.9)}, [1, 0.1, 0.01]),
    ],
)
def test_schedules_at_the_start_the_middle_and_the_end(changes, expected):
    config = OptimizerConfig(learning_rate=1.0, **changes)
    schedule = learning_rate_schedule(config, num_steps=100, batch_size=1)
    found = [float(schedule(step)) for step in (0, 50, 100)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    doubled = learning_rate_schedule(config, num_steps=100, batch_size=2)
    np.testing.assert_allclose(
        [float(doubled(s)) for s in (0, 50, 100)], 2 * np.array(expected), atol=1e-6
    )


def test_warm_up_multiplies_the_schedule():
    config = OptimizerConfig(
        learning_rate=1.0, schedule="poly", power=1.0, warmup_steps=10, warmup_factor=0.1
    )
    schedule = learning_rate_schedule(config, num_steps=100, batch_size=1)
    np.testing.assert_allclose(schedule(0), 0.1, rtol=1e-6)
    np.testing.assert_allclose(schedule(5), 0.55 * 0.95, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 0.9, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_and_the_optimisers_state_keep_their_dtypes(name, dtype):
    """All parts of the optimiser act, at a traced int32 step."""
    config = OptimizerConfig(
        name=name,
        weight_decay=0.1,
        multipliers=(("bias$", 2.0),),
        warmup_steps=2,
        clip_norm=1.0,
    )
    schedule = learning_rate_schedule(config, num_steps=4, batch_size=1)
    optimizer = make_optimizer(config, schedule)
    params = {"kernel": jnp.ones((2, 3), dtype), "bias": jnp.ones(3, dtype)}
    # Adam's bias correction in Optax raises a float to the int32 step, which strict JAX refuses.
    with jax.numpy_dtype_promotion("strict" if name == "sgd" else "standard"):
        state = optimizer.init(params)
        updates, new_state = jax.jit(optimizer.update)(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)


def test_clipping_bounds_the_norm_of_the_gradient():
    config = OptimizerConfig(learning_rate=1.0, momentum=0.0, schedule="constant", clip_norm=2.0)
    schedule = learning_rate_schedule(config, num_steps=1, batch_size=1)
    optimizer = make_optimizer(config, schedule)
    params = {"kernel": np.zeros(2, np.float32)}
    gradient = {"kernel": np.array([30, 40], np.float32)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-1.2, -1.6], rtol=1e-5)


def updates_of(config, params, *, gradient=1.0):
    """Returns the updates of one step at learning rate 1."""
    config = dataclasses.replace(config, learning_rate=1.0, schedule="constant")
    optimizer = make_optimizer(config, learning_rate_schedule(config, num_steps=1, batch_size=1))
    gradients = jax.tree.map(lambda p: np.full_like(p, gradient), params)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_multipliers_act_on_the_parameters_their_patterns_are_found_in_and_multiply():
    ones = np.ones(2, np.float32)
    params = {"backbone": {"kernel": ones, "bias": ones}, "logits": {"kernel": ones, "bias": ones}}
    config = OptimizerConfig(
        multipliers=(("^logits/", 10.0), ("bias$", 2.0), ("^backbone/kernel", 0.0))
    )
    found = jax.tree.map(lambda update: float(update[0]), updates_of(config, params))
    assert found == {
        "backbone": {"kernel": 0, "bias": -2},
        "logits": {"kernel": -10, "bias": -20},
    }
    assert frozen_parameters(config, params) == {
        "backbone": {"kernel": True, "bias": False},
        "logits": {"kernel": False, "bias": False},
    }


def test_the_pattern_of_decayed_parameters_chooses_them():
    ones = np.ones(1, np.float32)
    params = {"depthwise": {"kernel": ones}, "pointwise": {"kernel": ones, "bias": ones}}
    for pattern, expected in {
        r"(?<!depthwise)/kernel$": [0, 0, -0.5],
        ".": [-0.5, -0.5, -0.5],
    }.items():
        config = OptimizerConfig(momentum=0.0, weight_decay=0.5, decayed=pattern)
        updates = jax.tree.leaves(updates_of(config, params, gradient=0.0))
        assert [float(update[0]) for update in updates] == expected


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ("optimizer.multipliers", {"multipliers": (("hed/", 10.0),)}),
        ("optimizer.decayed", {"decayed": "hed/", "weight_decay": 0.1}),
    ],
)
def test_a_pattern_that_is_found_nowhere_is_refused_with_paths_there_are(setting, changes):
    params = {"head": {"kernel": np.ones(1, np.float32)}}
    with pytest.raises(ValueError, match=rf"{setting}: 'hed/' is in no .* head/kernel"):
        updates_of(OptimizerConfig(**changes), params)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_optimiser_takes_a_tree_without_leaves(name):
    """A part of a partitioned optimiser may have no parameters; its patterns match nothing."""
    config = OptimizerConfig(name=name, weight_decay=0.1, multipliers=(("bias$", 2.0),))
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        assert jax.tree.leaves(updates_of(config, {"head": {}})) == []


def test_a_tree_without_leaves_matches_any_pattern():
    """optax.contrib.muon masks a tree without leaves if Adam trains all parameters."""
    assert matching({}, "kernel$", setting="optimizer.decayed") == {}


def test_frozen_parameters_stay_and_take_no_part_in_the_gradient():
    config = tiny.Config(workdir=Path())
    everything, _ = run_steps(config, devices=1, num_steps=2)
    optimizer = dataclasses.replace(config.optimizer, multipliers=(("^Conv_0/", 0.0),))
    config = dataclasses.replace(config, optimizer=optimizer)
    start = run_steps(config, devices=1, num_steps=0)[1].params
    losses, state = run_steps(config, devices=1, num_steps=2)
    chex.assert_trees_all_equal(state.params["Conv_0"], start["Conv_0"])
    assert not np.array_equal(state.params["Conv_1"]["kernel"], start["Conv_1"]["kernel"])
    assert losses[0] == everything[0]
    assert losses[1] != everything[1]


def test_initial_parameters_are_drawn_by_numpy_and_those_of_other_layers_by_jax():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = ConvolutionNorm(4, name="ours")(x, train)
            return nn.Conv(2, (1, 1), name="theirs")(x)

    class Task:
        def init(self, key, batch):
            return Mixed().init(key, batch["image"])

    batch, optimizer = {"image": np.ones((2, 8, 8, 3), np.float32)}, optax.sgd(0.1, momentum=0.9)

    def created(seed):
        return create_state(Task(), optimizer, seed=seed, batch=batch, ema=True)

    state = created(1)
    expected = Mixed().init(jax.random.key(1), batch["image"])
    # Flax draws by key and path: its own layer has the parameters that `init` gives it.
    theirs = state.params["theirs"]
    jax.tree.map(np.testing.assert_array_equal, theirs, expected["params"]["theirs"])
    kernel = state.params["ours"]["convolution"]["kernel"]
    assert np.std(kernel) == pytest.approx(math.sqrt(2 / 36), rel=0.3)
    assert np.all(kernel != expected["params"]["ours"]["convolution"]["kernel"])
    chex.assert_trees_all_equal(state.params, state.ema_params, created(1).params)
    assert np.all(created(2).params["ours"]["convolution"]["kernel"] != kernel)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state, state_shapes(Task(), optimizer, seed=1, batch=batch, ema=True)
    )
