"""The U-Net protocol on data sets of the Cell Tracking Challenge (section 4, table 2)."""

from dataclasses import dataclass

from segjax.recipes.unet import CellExperimentConfig, UNetPredictionConfig
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class CellTrackingConfig(CellExperimentConfig):
    """Settings common to the challenge's data sets."""

    # One large tile per batch and momentum 0.99 (section 3): an update averages about 100 tiles.
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, momentum=0.99, schedule="poly", warmup_steps=500
    )
    prediction: UNetPredictionConfig = UNetPredictionConfig(min_cell_size=500)
