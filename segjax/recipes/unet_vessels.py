"""The U-Net protocol on vessels of the retina: DRIVE and CHASE_DB1."""

from dataclasses import dataclass
from functools import partial

from segjax.data.sources.semantic import open_dataset
from segjax.evaluation.metrics import RocAuc
from segjax.losses.semantic import SemanticLoss
from segjax.recipes.unet import (
    AugmentConfig,
    PredictionConfig,
    UNetConfig,
    segmentation_task,
    training_transforms,
)
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class VesselConfig(ExperimentConfig):
    """What the vessel data sets have in common; mmsegmentation's batch and length."""

    train: TrainConfig = TrainConfig(
        num_steps=40_000, batch_size=16, eval_every=4000, checkpoint_every=2000
    )
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.01, reference_batch_size=16, weight_decay=5e-4, warmup_steps=200
    )
    unet: UNetConfig = UNetConfig(padding="SAME", norm="batch", tile=64)
    augment: AugmentConfig = AugmentConfig(scale=(0.5, 2.0), elastic_sigma=0.0)
    loss: SemanticLoss = SemanticLoss(cross_entropy=1.0, dice=3.0)
    prediction: PredictionConfig = PredictionConfig()


def vessel_experiment(config: VesselConfig, dataset: str) -> Experiment:
    """Builds the experiment on the official split: trained on "train", scored on "test"."""
    open_split = partial(open_dataset, dataset, data_dir=config.data_dir)
    return Experiment(
        task=segmentation_task(
            config.unet,
            dataset,
            prediction=config.prediction,
            loss=config.loss,
            metrics=(RocAuc(),),
        ),
        train=partial(open_split, "train"),
        transforms=training_transforms(config.unet, config.augment),
        evaluation={"test": partial(open_split, "test")},
        best_metric="foreground_dice",
    )
