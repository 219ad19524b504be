"""Training and prediction on a mesh of devices, data × rows, against one device."""

import dataclasses
import functools
import itertools
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segjax.data.loading.loader import training_batches
from segjax.inference.tiling import Tiling
from segjax.losses import SemanticLoss
from segjax.models import UNet
from segjax.training.evaluate import Evaluator
from segjax.training.mesh_parallel import MeshParallel
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step
from tests.training import test_deeplab, tiny

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4)]
MIXED_LOSS = SemanticLoss(cross_entropy=1.0, dice=1.0, dice_over="batch", dice_background=True)


def devices(count):
    return tuple(jax.devices()[:count])


def mesh_of(data, rows, **options):
    return MeshParallel(data, rows, devices=devices(data * rows), **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """A task with its examples and its optimiser."""

    task: object
    source: object
    transforms: tuple
    optimizer: object
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class Crop:
    """Transform: cuts 32 × 32 pixels, and the labels to their centre of `labels` × `labels`."""

    labels: int

    def __call__(self, example, rng):
        inner = slice((32 - self.labels) // 2, (32 + self.labels) // 2)
        cut = {"image": example["image"][:32, :32], "labels": example["labels"][inner, inner]}
        return {**example, **cut}


def padded_unet(**settings) -> Case:
    config = tiny.Config(workdir=Path(), **settings)
    experiment = tiny.build(config)
    task = tiny.make_task(config)
    return Case(task, experiment.train(), experiment.transforms, config.optimizer)


def valid_unet() -> Case:
    model = UNet(3, features=2, depth=1, dropout_rate=0.0)
    task = dataclasses.replace(
        test_deeplab.make_task("v3+"),
        model=model,
        covering=Tiling((16, 16), (32, 32), multiple=2),
        loss_function=SemanticLoss(hard_pixels=0.2),
    )
    transforms = (task.preprocess, Crop(16))
    return Case(task, test_deeplab.Squares(8), transforms, OptimizerConfig(learning_rate=0.05))


def deeplab() -> Case:
    """DeepLab v3+ whose atrous rates reach beyond a neighbour's rows."""
    task = test_deeplab.make_task("v3+")
    transforms = (task.preprocess, Crop(32))
    return Case(task, test_deeplab.Squares(8), transforms, OptimizerConfig(learning_rate=0.002))


def trained(case: Case, parallel, *, num_steps=20, micro_batches=1):
    """Returns the losses of the steps, and the last state on its devices."""
    schedule = learning_rate_schedule(case.optimizer, num_steps=num_steps, batch_size=4)
    optimizer = make_optimizer(case.optimizer, schedule)
    step = parallel.train_step(
        make_train_step(
            case.task, optimizer, schedule, seed=0, micro_batches=micro_batches, ema_decay=0.9
        )
    )
    batches = training_batches(case.source, case.transforms, batch_size=case.batch_size, seed=1)
    first = next(batches)
    state = create_state(case.task, optimizer, seed=0, batch=first, ema=True)
    state = parallel.replicate(state)
    losses = []
    feed = parallel.prefetch(itertools.islice(itertools.chain([first], batches), num_steps))
    for _, batch in feed:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, state


def predicted(case: Case, parallel, variables):
    evaluator = Evaluator(case.task, parallel, batch_size=1, workdir=None)
    examples = [case.source[i] | {"id": str(i)} for i in range(3)]
    placed = parallel.local(parallel.replicate(variables))
    return [each["probabilities"] for _, each in evaluator.predictions(placed, examples)]


CASES = {
    "padded U-Net": functools.partial(padded_unet, norm="batch", loss=MIXED_LOSS),
    "valid U-Net": valid_unet,
    "DeepLab v3+": deeplab,
}


@functools.cache
def on_one_device(name):
    case = CASES[name]()
    losses, state = trained(case, DataParallel(devices(1)))
    variables = jax.device_get(state.variables)
    return losses, variables, predicted(case, DataParallel(devices(1)), variables)


QUICK = [("padded U-Net", (2, 2)), ("padded U-Net", (1, 4)), ("valid U-Net", (1, 2))]


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param(
            *(name, mesh),
            marks=[] if (name, mesh) in QUICK else pytest.mark.slow,
            id=f"{name}-{mesh[0]}x{mesh[1]}",
        )
        for name in CASES
        for mesh in MESHES
    ],
)
def test_every_mesh_trains_and_predicts_as_one_device(name, mesh):
    losses, variables, predictions = on_one_device(name)
    case, parallel = CASES[name](), mesh_of(*mesh)
    found, state = trained(case, parallel)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(jax.device_get(state.variables), variables, atol=1e-4)
    for one, other in zip(predictions, predicted(case, parallel, variables), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
