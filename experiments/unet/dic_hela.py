"""U-Net on DIC-C2DH-HeLa of the Cell Tracking Challenge: touching cells without contrast.

Paper     IoU (the challenge's SEG) 0.7756; the second best entry of 2015 had 0.46 (table 2).
Protocol  the paper trains on 20 partly annotated images of the challenge's training set and is
          scored on its secret test set. We train on the silver truth of the first 71 frames of
          sequence 01, validate on its other 13, and score SEG and IoU on the 9 gold frames of
          sequence 02. The paper gives neither learning rate nor iterations; these are ours.
Cost      not yet measured for the paper's network; RESULTS.md has narrower ones.
Data      segjax data prepare cell_tracking/dic_c2dh_hela --source DIR
Command   python experiments/unet/dic_hela.py --workdir runs/dic_hela
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.data.sources.splits import prepared_splits
from segjax.recipes.unet import WeightMapConfig, cell_experiment
from segjax.recipes.unet_cell_tracking import CellTrackingConfig
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class Config(CellTrackingConfig):
    """The paper's U-Net on DIC-C2DH-HeLa: trained on sequence 01, scored on 02."""

    train: TrainConfig = TrainConfig(
        num_steps=20_000, batch_size=1, eval_every=2000, checkpoint_every=1000
    )
    # With the gaps drawn, 52 % of the pixels are background.
    weight_map: WeightMapConfig = WeightMapConfig(gap=4, class_weights=(0.96, 1.04))


def build(config: Config) -> Experiment:
    splits = prepared_splits(
        "cell_tracking/dic_c2dh_hela",
        data_dir=config.data_dir,
        train="silver_01[:85%]",
        evaluation={"validation": "silver_01[85%:]", "test": "gold_02"},
    )
    return cell_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__)
