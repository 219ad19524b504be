"""Train a network with a teacher: knowledge distillation, on the quickstart's cells.

Paper     Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015
          (arXiv:1503.02531), applied to each pixel. Without a teacher run, the teacher is the
          moving average of the student's parameters, as in Tarvainen and Valpola, Mean teachers,
          2017 (arXiv:1703.01780). Neither paper has numbers on this data.
Protocol  The quickstart (experiments/quickstart.py) with a student of 8 features. The log's term
          "distillation" is the divergence of student and teacher at a temperature. The teacher is
          a run of the quickstart; train it first.
Data      synthetic_cells, made by code on first use.
Cost      6 minutes on 2 CPU cores that were busy with other work, after the teacher.
Command   python experiments/extending/distillation.py --workdir runs/distillation
          --teacher-run runs/quickstart
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.commands.launch import run
from segjax.labels import IGNORE_LABEL
from segjax.recipes.unet import UNetConfig
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment, load_module
from segjax.training.experiment_files import experiments_folder
from segjax.training.state import TrainState

quickstart = load_module(experiments_folder() / "quickstart.py")
DEFAULTS = quickstart.Config()


@dataclass(frozen=True)
class Config(quickstart.Config):
    """A narrow student that learns from the quickstart's network."""

    workdir: Path = Path("runs/distillation")
    # With 0.99, the average of 150 steps would still hold a fifth of the first parameters.
    train: TrainConfig = dataclasses.replace(DEFAULTS.train, ema_decay=0.9)
    network: UNetConfig = dataclasses.replace(DEFAULTS.network, features=8)
    teacher: UNetConfig = DEFAULTS.network
    """The teacher's network, which predicts the same tiles as the student's."""
    teacher_run: Path | None = None
    """Run directory of the teacher; None uses the moving average of the student."""
    temperature: float = 2.0
    """Temperature of both softmaxes."""
    distillation: float = 0.5
    """Weight of the distillation term."""


def distillation_loss(
    outputs, batch, variables, *, teacher: nn.Module, temperature: float, weight: float
):
    """Computes T² · KL(teacher ‖ student), averaged over the valid pixels of the whole batch."""
    if "frozen" in variables:
        beside = variables["frozen"]["teacher"]
    else:
        beside = {"params": variables["ema_params"], "batch_stats": variables["batch_stats"]}
    expected = jax.lax.stop_gradient(teacher.apply(beside, batch["image"])["logits"])
    student, target = (
        jax.nn.log_softmax(logits / temperature) for logits in (outputs["logits"], expected)
    )
    divergence = jnp.sum(jnp.exp(target) * (target - student), axis=-1)
    divergence = jnp.where(batch["labels"] != IGNORE_LABEL, divergence, 0.0)
    # "normalizer" is the number of valid pixels per image, averaged over the batch of all devices.
    per_image = jnp.sum(divergence, axis=(1, 2)) / jnp.maximum(batch["normalizer"], 1.0)
    return weight * temperature**2 * jnp.mean(per_image)


def variables_of(run: Path) -> dict:
    """Returns the variables with which a run's newest checkpoint is evaluated."""
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        return TrainState(**checkpoints.read(checkpoints.latest_step)).variables


def build(config: Config) -> Experiment:
    experiment = quickstart.build(config)
    student = experiment.task.model
    has_run = config.teacher_run is not None
    term = partial(
        distillation_loss,
        teacher=config.teacher.model(student.num_classes) if has_run else student,
        temperature=config.temperature,
        weight=config.distillation,
    )
    return dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, extra_losses={"distillation": term}),
        frozen=(lambda: {"teacher": variables_of(config.teacher_run)}) if has_run else None,
    )


if __name__ == "__main__":
    run(Config, build, __file__)
