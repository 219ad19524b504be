"""Losses that use other networks: frozen ones, and the moving average of the trained one."""

import dataclasses
import functools
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.training.checkpoint import Checkpoints
from segjax.training.loop import train
from segjax.training.parallel import DataParallel
from tests.training import tiny

CONFIG = tiny.Config(workdir=Path(), norm="batch")
TEACHER_SEED = 7


def distance(outputs, batch, variables, *, model):
    """Computes the distance of the logits from the teacher's and from the moving average's."""
    params = variables["ema_params"]
    averaged = {"params": params, "batch_stats": variables["batch_stats"]}
    return 0.1 * sum(
        jnp.mean((outputs["logits"] - model.apply(other, batch["image"])["logits"]) ** 2)
        for other in (variables["frozen"]["teacher"], averaged)
    )


def experiment():
    built = tiny.build(CONFIG)
    term = functools.partial(distance, model=built.task.model)
    task = dataclasses.replace(built.task, extra_losses={"distance": term})

    def frozen():
        image = np.zeros((1, tiny.SIDE, tiny.SIDE, 1), np.float32)
        init = jax.jit(lambda key: task.model.init(key, image))
        return {"teacher": jax.device_get(init(jax.random.key(TEACHER_SEED)))}

    return dataclasses.replace(built, task=task, frozen=frozen)


def run(workdir, built, *, devices=2):
    """Trains or resumes; returns all arrays of the last checkpoint."""
    settings = dataclasses.replace(CONFIG.train, num_steps=4, ema_decay=0.5)
    config = dataclasses.replace(CONFIG, workdir=workdir, train=settings)
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    train(built, config, experiment_file=tiny.__file__, parallel=parallel)
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.read(checkpoints.latest_step))


def test_frozen_networks_stay_are_saved_and_are_resumed_without_their_source(tmp_path):
    built = experiment()
    whole = run(tmp_path, built)
    chex.assert_trees_all_equal(whole["frozen"], built.frozen())
    shutil.rmtree(tmp_path / "checkpoints" / "4")

    def gone():
        raise AssertionError("a resumed run has its frozen networks from the checkpoint")

    resumed = run(tmp_path, dataclasses.replace(built, frozen=gone))
    assert resumed["step"] == 4
    chex.assert_trees_all_equal(resumed, whole)
    alone = run(tmp_path / "alone", built, devices=1)
    chex.assert_trees_all_close(alone["params"], whole["params"], rtol=0, atol=1e-4)
    # The optimiser ignores them: it has one momentum per trained parameter.
    moments = [x.shape for x in jax.tree.leaves(whole["opt_state"]) if x.ndim]
    assert sorted(moments) == sorted(x.shape for x in jax.tree.leaves(whole["params"]) if x.ndim)


def test_a_state_without_frozen_networks_is_saved_as_before_there_were_any(tmp_path):
    saved = run(tmp_path, tiny.build(CONFIG), devices=1)
    assert set(saved) == {"step", "params", "batch_stats", "opt_state", "ema_params"}
