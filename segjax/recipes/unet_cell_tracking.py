"""The U-Net protocol on data sets of the Cell Tracking Challenge (section 4, table 2)."""

from dataclasses import dataclass
from functools import partial

from segjax.data.sources.semantic import open_dataset
from segjax.evaluation.metrics import CellTracking
from segjax.losses.semantic import SemanticLoss
from segjax.recipes.unet import (
    AugmentConfig,
    CellInstances,
    PredictionConfig,
    UNetConfig,
    WeightMapConfig,
    segmentation_task,
    training_transforms,
)
from segjax.training.configuration import ExperimentConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class CellTrackingConfig(ExperimentConfig):
    """What the challenge's data sets have in common."""

    # Momentum 0.99 with one large tile a batch (section 3): 100 past tiles in each update.
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, momentum=0.99, schedule="poly", warmup_steps=500
    )
    unet: UNetConfig = UNetConfig()
    augment: AugmentConfig = AugmentConfig()
    weight_map: WeightMapConfig = WeightMapConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: PredictionConfig = PredictionConfig(min_cell_size=500)


def cell_tracking_experiment(
    config: CellTrackingConfig, dataset: str, *, train: str, validation: str, test: str
) -> Experiment:
    """Builds the experiment on splits of a prepared data set; the checkpoint's score is SEG."""
    open_split = partial(open_dataset, dataset, data_dir=config.data_dir)
    decode = CellInstances(gap=config.weight_map.gap, min_size=config.prediction.min_cell_size)
    return Experiment(
        task=segmentation_task(
            config.unet,
            dataset,
            prediction=config.prediction,
            loss=config.loss,
            metrics=(CellTracking(),),
            decode=decode,
        ),
        train=partial(open_split, train),
        transforms=training_transforms(config.unet, config.augment, config.weight_map),
        evaluation={
            "validation": partial(open_split, validation),
            "test": partial(open_split, test),
        },
        best_metric="seg",
    )
