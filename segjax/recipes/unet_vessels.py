"""The U-Net protocol on retinal vessels: DRIVE and CHASE_DB1."""

from dataclasses import dataclass

from segjax.data.sources.splits import prepared_splits
from segjax.evaluation.metrics import RocAuc
from segjax.losses.semantic import SemanticLoss
from segjax.recipes.unet import (
    UNetAugmentConfig,
    UNetConfig,
    UNetExperimentConfig,
    unet_experiment,
)
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


def vessel_experiment(config: VesselConfig, dataset: str) -> Experiment:
    """Builds the experiment on the official split, trained on "train" and scored on "test"."""
    splits = prepared_splits(dataset, data_dir=config.data_dir, evaluation={"test": "test"})
    return unet_experiment(config, splits, best_metric="foreground_dice", metrics=(RocAuc(),))
