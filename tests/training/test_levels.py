"""A train step of each family, compiled as most tests are and as users compile it."""

import contextlib
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest

from segjax.data.loading.loader import training_batches
from segjax.training.state import TrainState
from segjax.training.step import make_train_step
from tests.models.mask_rcnn_tiny import PACK, variables_of
from tests.optimization import as_for_users
from tests.training import test_deeplab, test_mask_rcnn, tiny
from tests.variables import random_variables


def batch_of(source, transform):
    batches = training_batches(source, (transform,), batch_size=4, seed=0)
    with contextlib.closing(batches):
        return next(batches)


def unet():
    task = tiny.make_task(tiny.Config(workdir=Path(), norm="batch", dropout_rate=0.5))
    batch = batch_of(tiny.Squares(8), task.preprocess)
    return task, batch, random_variables(task, batch)


def deeplab():
    task = test_deeplab.make_task("v3+", dropout_rate=0.5)
    batch = batch_of(test_deeplab.Squares(8), task.preprocess)
    return task, batch, random_variables(task, batch)


def mask_rcnn():
    task = test_mask_rcnn.TASK
    return task, batch_of(test_mask_rcnn.Ellipses(8), PACK), variables_of(task.model)


def step(task, batch, variables):
    """Returns the state after one step, and the step's metrics."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    opt_state = optimizer.init(variables["params"])
    state = TrainState(step=np.int32(0), opt_state=opt_state, **variables)
    run = make_train_step(task, optimizer, optax.constant_schedule(0.1), seed=0)
    return jax.device_get(jax.jit(run)(state, batch))


def slow(family):
    return pytest.param(family, marks=pytest.mark.slow, id=family.__name__)


@pytest.mark.parametrize("family", [unet, slow(deeplab), slow(mask_rcnn)])
def test_a_step_is_the_same_with_and_without_the_compilers_optimisations(family):
    arguments = family()
    plain = step(*arguments)
    with as_for_users():
        optimized = step(*arguments)
    chex.assert_trees_all_close(optimized, plain, rtol=1e-4, atol=1e-5)
