"""An experiment file for tests: a task of a few hundred parameters on generated squares."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from segjax.commands.launch import run
from segjax.data.augmentation.semantic import Standardize, Warp
from segjax.evaluation.metrics import NegativeLogLikelihood
from segjax.inference.tiling import Tiling
from segjax.losses import SemanticLoss
from segjax.models import UNet
from segjax.tasks import SemanticTask
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

SIDE = 16


@dataclass(frozen=True)
class Squares:
    """Bright squares on dark ground; one row of each label map is ignored."""

    size: int
    first: int = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = np.random.default_rng(self.first + index)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(0, SIDE // 2, 2)
        labels[top : top + 6, left : left + 6] = 1
        image = labels[..., None] * 80 + rng.integers(0, 60, (SIDE, SIDE, 1))
        image = image.astype(np.float32)
        labels[rng.integers(SIDE)] = 255
        return {"image": image, "labels": labels, "id": f"square_{self.first + index}"}


@dataclass(frozen=True)
class Poison:
    """Transform: puts NaNs into one example, after the check of what the source gives."""

    index: int

    def __call__(self, example, rng):
        image = example["image"].copy()
        if example["id"] == f"square_{self.index}":
            image[0, 0] = np.nan
        return {**example, "image": image}


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """A few steps on squares."""

    train: TrainConfig = TrainConfig(
        num_steps=6, batch_size=4, log_every=1, checkpoint_every=2, eval_every=3, num_workers=0
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.05, reference_batch_size=4, weight_decay=1e-4
    )
    norm: str | None = None
    dropout_rate: float = 0.0
    loss: SemanticLoss = SemanticLoss()
    poisoned: int = -1  # the index of an example with NaNs


def make_task(config: Config) -> SemanticTask:
    return SemanticTask(
        model=UNet(
            num_classes=2,
            features=2,
            depth=1,
            padding="SAME",
            norm=config.norm,
            dropout_rate=config.dropout_rate,
        ),
        classes=("ground", "square"),
        channels=1,
        covering=Tiling((SIDE, SIDE), (SIDE // 2, SIDE // 2), multiple=2),
        preprocess=Standardize(),
        loss_function=config.loss,
        metrics=(NegativeLogLikelihood(),),
    )


def build(config: Config) -> Experiment:
    return Experiment(
        task=make_task(config),
        train=partial(Squares, 12),
        transforms=(
            Poison(config.poisoned),
            Standardize(),
            Warp((SIDE, SIDE), flip_horizontal=True, rotation=20),
        ),
        evaluation={"validation": partial(Squares, 5, 100), "test": partial(Squares, 3, 200)},
    )


if __name__ == "__main__":
    run(Config, build, __file__)
