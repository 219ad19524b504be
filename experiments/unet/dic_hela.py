"""U-Net on DIC-C2DH-HeLa of the Cell Tracking Challenge: touching cells without contrast.

Paper     IoU (the challenge's SEG) 0.7756; the second best entry of 2015 had 0.46 (table 2).
Protocol  the paper trains on 20 partly annotated images of the challenge's training set and is
          scored on its secret test set. We train on the silver truth of the first 71 frames of
          sequence 01, validate on its other 13, and score SEG and IoU on the 9 gold frames of
          sequence 02, or with --train-on 02 the other way round. The paper gives neither learning
          rate nor iterations; these are ours. --variant small is a quarter as wide, for a CPU: zero
          padding, batch norm, AdamW; mean over all eight rotations and flips.
Cost      not yet measured for the paper's network; RESULTS.md has narrower ones.
Data      segjax data prepare cell_tracking/dic_c2dh_hela --source DIR
Command   python experiments/unet/dic_hela.py --workdir runs/dic_hela
"""

from dataclasses import dataclass
from typing import Literal

from segjax.commands.launch import run
from segjax.data.sources.splits import prepared_splits
from segjax.recipes.unet import (
    UNetPredictionConfig,
    WeightMapConfig,
    cell_experiment,
)
from segjax.recipes.unet_cell_tracking import CellTrackingConfig
from segjax.recipes.unet_small import small_network
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class Config(CellTrackingConfig):
    """The paper's U-Net on DIC-C2DH-HeLa: trained on one sequence, scored on the other."""

    train_on: Literal["01", "02"] = "01"
    """The sequence to train on."""
    train: TrainConfig = TrainConfig(
        num_steps=20_000, batch_size=1, eval_every=2000, checkpoint_every=1000
    )
    # With the gaps drawn, 52 % of the pixels are background.
    weight_map: WeightMapConfig = WeightMapConfig(gap=4, class_weights=(0.96, 1.04))


VARIANTS = {
    "small": small_network(
        tile=256,
        batch_size=2,
        steps=3000,
        average_over="eight",
        prediction=UNetPredictionConfig(min_cell_size=500),
    ),
}


def build(config: Config) -> Experiment:
    train, other = config.train_on, {"01": "02", "02": "01"}[config.train_on]
    splits = prepared_splits(
        "cell_tracking/dic_c2dh_hela",
        data_dir=config.data_dir,
        train=f"silver_{train}[:85%]",
        evaluation={"validation": f"silver_{train}[85%:]", "test": f"gold_{other}"},
    )
    return cell_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
