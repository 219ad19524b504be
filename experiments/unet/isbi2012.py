"""U-Net on ISBI 2012: neuronal membranes in electron microscopy.

Paper     warping error 0.000353, Rand error 0.0382, pixel error 0.0611 on the challenge's secret
          test set, averaged over 7 rotated versions of the input (table 1).
Protocol  the test labels were never published. We train on slices 0-23 of the training volume and
          score slices 24-29 with the challenge's measures, each at its best threshold. Six slices
          are few and adjacent slices look alike: compare with the paper's numbers only in order of
          magnitude. The paper gives neither learning rate nor iterations; these are ours.
          --variant small is a quarter as wide, for a CPU: zero padding, batch norm, AdamW; equal
          class weights; mean over all eight rotations and flips.
Cost      not yet measured for the paper's network; RESULTS.md has narrower ones.
Data      segjax data prepare isbi2012 --source DIR
Command   python experiments/unet/isbi2012.py --workdir runs/isbi2012
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import prepared_splits
from segjax.evaluation.metrics import EmErrors
from segjax.recipes.unet import (
    CellExperimentConfig,
    UNetPredictionConfig,
    WeightMapConfig,
    unet_experiment,
)
from segjax.recipes.unet_small import small_network
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Config(CellExperimentConfig):
    """The paper's U-Net on ISBI 2012, six slices held out."""

    train: TrainConfig = TrainConfig(
        num_steps=20_000, batch_size=1, eval_every=2000, checkpoint_every=1000
    )
    # Batches of one large tile with momentum 0.99 (section 3): each update averages 100 past tiles.
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, momentum=0.99, schedule="poly", warmup_steps=500
    )
    # Membranes already separate the cells, so no gap is drawn. They are 22.5 % of the pixels.
    weight_map: WeightMapConfig = WeightMapConfig(gap=0, class_weights=(2.22, 0.65))
    prediction: UNetPredictionConfig = UNetPredictionConfig(average_over="seven")


VARIANTS = {
    "small": small_network(
        tile=256,
        batch_size=2,
        steps=3000,
        average_over="eight",
        weight_map=WeightMapConfig(gap=0, class_weights=(1.0, 1.0)),
    ),
}


def build(config: Config) -> Experiment:
    splits = prepared_splits(
        "isbi2012",
        data_dir=config.data_dir,
        train="train[:24]",
        evaluation={"held_out": "train[24:]"},
    )
    return unet_experiment(
        config,
        splits,
        best_metric="rand_error",
        minimize=True,
        weights=config.weight_map,
        metrics=(EmErrors(),),
    )


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
