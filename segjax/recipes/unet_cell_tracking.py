"""The U-Net protocol on data sets of the Cell Tracking Challenge (section 4, table 2)."""

from dataclasses import dataclass

from segjax.recipes.unet import CellExperimentConfig, UNetPredictionConfig
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class CellTrackingConfig(CellExperimentConfig):
    """What the challenge's data sets have in common."""

    # Momentum 0.99 with one large tile a batch (section 3): 100 past tiles in each update.
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, momentum=0.99, schedule="poly", warmup_steps=500
    )
    prediction: UNetPredictionConfig = UNetPredictionConfig(min_cell_size=500)
