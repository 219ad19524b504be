"""U-Net on ISBI 2012: neuronal membranes in electron microscopy.

Paper     warping error 0.000353, Rand error 0.0382, pixel error 0.0611 on the challenge's secret
          test set, averaged over 7 rotated versions of the input (table 1).
Protocol  the test labels were never published: we train on slices 0-23 of the training volume and
          score slices 24-29, with the challenge's measures, each at its best threshold. Adjacent
          slices look alike and six are few, so that the numbers do not compare with the paper's
          beyond their order of size. The paper gives neither learning rate nor iterations; those
          here are ours.
Cost      not yet measured for the paper's network; RESULTS.md has narrower ones.
Data      segjax data prepare isbi2012 --source DIR
Command   python experiments/unet/isbi2012.py --workdir runs/isbi2012
"""

from dataclasses import dataclass
from functools import partial

from segjax.commands.launch import run
from segjax.data.sources.semantic import open_dataset
from segjax.evaluation.metrics import EmErrors
from segjax.losses import SemanticLoss
from segjax.recipes.unet import (
    AugmentConfig,
    PredictionConfig,
    UNetConfig,
    WeightMapConfig,
    segmentation_task,
    training_transforms,
)
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

DATASET = "isbi2012"


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """The paper's U-Net on ISBI 2012, six slices held out."""

    train: TrainConfig = TrainConfig(
        num_steps=20_000, batch_size=1, eval_every=2000, checkpoint_every=1000
    )
    # Momentum 0.99 with one large tile a batch (section 3): 100 past tiles in each update.
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, momentum=0.99, schedule="poly", warmup_steps=500
    )
    unet: UNetConfig = UNetConfig()
    augment: AugmentConfig = AugmentConfig()
    # Membranes part the cells already: no gap is drawn between them. They are 22.5 % of the pixels.
    weight_map: WeightMapConfig = WeightMapConfig(gap=0, class_weights=(2.22, 0.65))
    loss: SemanticLoss = SemanticLoss()
    prediction: PredictionConfig = PredictionConfig(average_over="seven")


def build(config: Config) -> Experiment:
    open_split = partial(open_dataset, DATASET, data_dir=config.data_dir)
    return Experiment(
        task=segmentation_task(
            config.unet,
            DATASET,
            prediction=config.prediction,
            loss=config.loss,
            metrics=(EmErrors(),),
        ),
        train=partial(open_split, "train[:24]"),
        transforms=training_transforms(config.unet, config.augment, config.weight_map),
        evaluation={"held_out": partial(open_split, "train[24:]")},
        best_metric="rand_error",
        minimize=True,
    )


if __name__ == "__main__":
    run(Config, build, __file__)
