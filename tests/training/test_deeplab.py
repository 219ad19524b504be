"""Training of all DeepLab versions: on several devices, and resumed."""

import dataclasses
import itertools
import shutil
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from segjax.data.augmentation.semantic import Normalize
from segjax.data.loading.loader import training_batches
from segjax.inference.coverings import WholeImage
from segjax.losses import SemanticLoss
from segjax.models import DeepLabV1, DeepLabV2, DeepLabV3, DeepLabV3Plus
from segjax.models.backbones.resnet import ResNet
from segjax.models.backbones.vgg import VGG16
from segjax.models.normalization import BatchNorm
from segjax.tasks import SemanticTask
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.loop import train
from segjax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from segjax.training.parallel import DataParallel
from segjax.training.state import create_state
from segjax.training.step import make_train_step

SIDE = 33
OPTIMIZER = OptimizerConfig(learning_rate=0.02, multipliers=(("^(?!backbone/)", 2.0),))


@dataclasses.dataclass(frozen=True)
class Squares:
    """Coloured squares, one of two classes each, with an ignored row."""

    size: int

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        for label in (1, 2):
            top, left = rng.integers(0, SIDE - 14, 2)
            labels[top : top + 14, left : left + 14] = label
        image = 150 * np.eye(3)[labels] + rng.integers(0, 50, (SIDE, SIDE, 3))
        labels[rng.integers(SIDE)] = 255
        return {"image": image.astype(np.uint8), "labels": labels, "id": f"squares_{index}"}


def make_task(version, *, dropout_rate=0.0):
    """Returns the task of a DeepLab version: all of its parts, as small as possible."""
    norm = BatchNorm
    resnet = ResNet(stage_sizes=(1, 1, 1, 1), width=4, block="basic", norm=norm)
    vgg = VGG16(stage_sizes=(1, 1, 1, 1, 1), width=4, pool_size=3)
    heads = {"aspp_features": 8, "dropout_rate": dropout_rate, "norm": norm}
    model = {
        "v1": lambda: DeepLabV1(
            3,
            backbone=vgg,
            head_features=8,
            multi_scale_features=True,
            dropout_rate=dropout_rate,
        ),
        "v2": lambda: DeepLabV2(
            3,
            backbone=vgg,
            atrous_rates=(1, 2),
            head_features=8,
            scales=(0.5, 1.0),
            dropout_rate=dropout_rate,
        ),
        "v3": lambda: DeepLabV3(
            3,
            backbone=resnet,
            multi_grid=(2,),
            auxiliary_head=True,
            auxiliary_dropout_rate=dropout_rate,
            **heads,
        ),
        "v3+": lambda: DeepLabV3Plus(
            3, backbone=resnet, low_level_features=4, decoder_features=8, **heads
        ),
    }[version]()
    return SemanticTask(
        model=model,
        classes=("ground", "first", "second"),
        channels=3,
        covering=WholeImage((SIDE, SIDE)),
        preprocess=Normalize(127.5, 127.5),
        loss_function=SemanticLoss(supervise="coarse" if version in ("v1", "v2") else "full"),
    )


def losses_on(devices, version, *, num_steps):
    task, parallel = make_task(version), DataParallel(tuple(jax.devices()[:devices]))
    schedule = learning_rate_schedule(OPTIMIZER, num_steps=num_steps, batch_size=1)
    optimizer = make_optimizer(OPTIMIZER, schedule)
    step = parallel.train_step(make_train_step(task, optimizer, schedule, seed=0))
    batches = training_batches(Squares(8), (task.preprocess,), batch_size=4, seed=1)
    first = next(batches)
    state = parallel.replicate(create_state(task, optimizer, seed=0, batch=first, ema=False))
    losses = []
    for _, batch in parallel.prefetch(
        itertools.islice(itertools.chain([first], batches), num_steps)
    ):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses


VERSIONS = ("v1", "v2", "v3", "v3+")


def slow_but(*quick):
    """Returns the versions as parameters; those not named are slow tests."""
    return [
        version if version in quick else pytest.param(version, marks=pytest.mark.slow)
        for version in VERSIONS
    ]


# v3 and v3+ have norms whose statistics the devices share; one of them is enough for a quick run.
@pytest.mark.parametrize("version", slow_but("v3"))
def test_one_and_four_devices_give_the_same_loss_curve(version):
    one, four = (losses_on(count, version, num_steps=8) for count in (1, 4))
    assert one[-1] < one[0]
    np.testing.assert_allclose(four, one, rtol=0, atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Config(ExperimentConfig):
    """A run of a few steps."""

    train: TrainConfig = TrainConfig(
        num_steps=4, batch_size=2, log_every=1, checkpoint_every=2, num_workers=0
    )
    optimizer: OptimizerConfig = OPTIMIZER


def run(workdir: Path, version) -> dict:
    """Trains or resumes on two devices; returns all arrays of the last checkpoint."""
    task = make_task(version, dropout_rate=0.5)
    experiment = Experiment(
        task=task,
        train=partial(Squares, 6),
        transforms=(task.preprocess,),
        evaluation={"val": partial(Squares, 2)},
    )
    parallel = DataParallel(tuple(jax.devices()[:2]))
    train(experiment, Config(workdir=workdir), experiment_file=__file__, parallel=parallel)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.read(checkpoints.latest_step))


# v3 has all that a resumed run could lose: dropout, batch statistics, an auxiliary head.
@pytest.mark.optimized
@pytest.mark.parametrize("version", slow_but("v3"))
def test_a_run_cut_short_and_resumed_equals_the_whole_run_bit_for_bit(version, tmp_path):
    whole = run(tmp_path, version)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    resumed = run(tmp_path, version)
    assert resumed["step"] == 4
    chex.assert_trees_all_equal(resumed, whole)
