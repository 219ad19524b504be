"""Training of Mask R-CNN: on several devices, resumed, and overfitting one batch."""

import dataclasses
import functools
import itertools
import shutil
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segjax.data.augmentation.instance import ResizeShortSide
from segjax.data.loading.loader import training_batches
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.losses.instance import DetectionLoss
from segjax.models.normalization import BatchNorm, GroupNorm
from segjax.tasks.instance import InstanceView
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.loop import train
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step
from tests.models.mask_rcnn_tiny import (
    CLASSES,
    PACK,
    SIDE,
    ellipses,
    packed_example,
    stack,
    tiny_model,
    tiny_task,
    variables_of,
)

OPTIMIZER = OptimizerConfig(
    learning_rate=0.02, reference_batch_size=4, schedule="constant", clip_norm=10.0
)
NUM_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Ellipses:
    """Images with none, one or two objects."""

    size: int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return ellipses(index, objects=index % 3)


# Synced batch norm in the backbone, group norm in pyramid and heads.
GROUPS = partial(GroupNorm, num_groups=2)
TASK = tiny_task(
    tiny_model(
        norm=BatchNorm,
        fpn_norm=GROUPS,
        head_norm=GROUPS,
        box_convolutions=1,
        box_fully_connected=1,
    ),
    views=(InstanceView(ResizeShortSide((SIDE,), SIDE)),),
    make_evaluator=partial(CocoEvaluator, CLASSES),
    loss_function=DetectionLoss(),
)


@functools.cache
def compiled_step(devices):
    """Returns (step, optimizer, parallel) for a number of devices."""
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    schedule = learning_rate_schedule(OPTIMIZER, num_steps=NUM_STEPS, batch_size=4)
    optimizer = make_optimizer(OPTIMIZER, schedule)
    step = make_train_step(TASK, optimizer, schedule, seed=0)
    return parallel.train_step(step), optimizer, parallel


def losses_on(devices, batches):
    step, optimizer, parallel = compiled_step(devices)
    batches = list(batches)
    state = create_state(TASK, optimizer, seed=0, batch=batches[0], ema=False)
    # Freshly initialised, all scores are almost equal, and rounding would decide their order.
    state = state.starting_from(variables_of(TASK.model))
    state, losses = parallel.replicate(state), []
    for _, batch in parallel.prefetch(batches):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses)


def test_one_and_four_devices_give_the_same_loss_curve():
    """Objects are spread unevenly over the devices, and anchors and regions are sampled."""
    stream = training_batches(Ellipses(8), (PACK,), batch_size=4, seed=1)
    batches = list(itertools.islice(stream, 6))
    stream.close()
    assert len({tuple(np.sum(batch["classes"] > 0, axis=1)) for batch in batches}) > 1
    one, four = (losses_on(count, batches) for count in (1, 4))
    np.testing.assert_allclose(four, one, rtol=0, atol=2e-5)


def test_overfits_one_batch():
    batch = stack(*(packed_example(index, objects=1 + index % 2) for index in range(4)))
    losses = losses_on(1, [batch] * 60)
    # Each step samples its own anchors and regions, which makes the loss noisy.
    assert losses[-5:].mean() < losses[:5].mean() / 2


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """A run of a few steps."""

    train: TrainConfig = TrainConfig(
        num_steps=NUM_STEPS, batch_size=4, log_every=1, checkpoint_every=2, num_workers=0
    )
    optimizer: OptimizerConfig = OPTIMIZER


def run(workdir: Path) -> dict:
    """Trains or resumes on two devices; returns all arrays of the last checkpoint."""
    experiment = Experiment(
        task=TASK,
        train=partial(Ellipses, 6),
        transforms=(PACK,),
        evaluation={"val": partial(Ellipses, 2)},
        best_metric="mask_AP",
    )
    parallel = DataParallel(tuple(jax.devices()[:2]))
    train(experiment, Config(workdir=workdir), experiment_file=__file__, parallel=parallel)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.read(checkpoints.latest_step))


# The loop is that of all tasks, which U-Net and DeepLab v3 resume in quick tests.
@pytest.mark.slow
def test_a_run_cut_short_and_resumed_equals_the_whole_run_bit_for_bit(tmp_path):
    whole = run(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / str(NUM_STEPS))
    resumed = run(tmp_path)
    assert resumed["step"] == NUM_STEPS
    chex.assert_trees_all_equal(resumed, whole)
