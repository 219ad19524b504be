"""The U-Net protocol on retinal vessels: DRIVE and CHASE_DB1."""

from dataclasses import dataclass
from typing import Any

from segjax.data.sources.splits import prepared_splits
from segjax.evaluation.metrics import RocAuc
from segjax.losses.semantic import SemanticLoss
from segjax.recipes.unet import (
    UNetAugmentConfig,
    UNetConfig,
    UNetExperimentConfig,
    unet_experiment,
)
from segjax.recipes.unet_small import small_network
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class VesselConfig(UNetExperimentConfig):
    """Settings common to the vessel data sets; batch size and steps are mmsegmentation's."""

    train: TrainConfig = TrainConfig(
        num_steps=40_000, batch_size=16, eval_every=4000, checkpoint_every=2000
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.01, reference_batch_size=16, weight_decay=5e-4, warmup_steps=200
    )
    network: UNetConfig = UNetConfig(padding="SAME", norm="batch", tile=64)
    augment: UNetAugmentConfig = UNetAugmentConfig(scale=(0.5, 2.0), elastic_sigma=0.0)
    loss: SemanticLoss = SemanticLoss(cross_entropy=1.0, dice=3.0)


def small_vessel_network(*, scale: tuple[float, float]) -> dict[str, Any]:
    """Returns a U-Net of half a million parameters for a CPU, as fields of a variant.

    It trains 4,000 steps of 4 tiles of 128² by cross-entropy alone.

    Args:
      scale: smallest and largest magnification of the tiles.
    """
    return small_network(
        tile=128,
        batch_size=4,
        steps=4000,
        depth=3,
        average_over="eight",
        augment=UNetAugmentConfig(scale=scale, elastic_sigma=0.0),
        loss=SemanticLoss(),
    )


def vessel_experiment(config: VesselConfig, dataset: str) -> Experiment:
    """Builds the experiment on the official split, trained on "train" and scored on "test"."""
    splits = prepared_splits(dataset, data_dir=config.data_dir, evaluation={"test": "test"})
    return unet_experiment(config, splits, best_metric="foreground_dice", metrics=(RocAuc(),))
