"""The DeepLab protocol on Cityscapes."""

from dataclasses import dataclass

from segjax.recipes.deeplab import (
    AugmentConfig,
    DeepLabConfig,
    PredictionConfig,
    deeplab_experiment,
)
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


def detectron2_optimizer() -> OptimizerConfig:
    """detectron2's projects/DeepLab: warm-up times poly, norms without decay."""
    return OptimizerConfig(
        learning_rate=0.01,
        reference_batch_size=16,
        weight_decay=1e-4,
        decayed=r"(kernel|convolution/bias|logits/bias)$",
        warmup_steps=1000,
    )


# detectron2's crops of 512 × 1024 from images whose shorter side is drawn from 512 to 2048.
DETECTRON2_AUGMENT = AugmentConfig(crop=(512, 1024), scale=(0.5, 2.0), scale_step=0.25)


@dataclass(frozen=True, kw_only=True)
class CityscapesConfig(DeepLabConfig):
    """What the experiments on Cityscapes have in common: v3's and v3+'s protocol."""

    train: TrainConfig = TrainConfig(
        num_steps=90_000, batch_size=16, eval_every=10_000, eval_batch_size=1, checkpoint_every=1000
    )
    augment: AugmentConfig = AugmentConfig(crop=(769, 769))
    prediction: PredictionConfig = PredictionConfig(size=(1025, 2049))


def cityscapes_experiment(config: CityscapesConfig) -> Experiment:
    """Builds the experiment: trained on the finely annotated "train", scored on "val"."""
    return deeplab_experiment(config, "cityscapes", train="train", evaluation={"val": "val"})
