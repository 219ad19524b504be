"""U-Net on PhC-C2DH-U373 of the Cell Tracking Challenge: glioblastoma cells in phase contrast.

Paper     IoU (the challenge's SEG) 0.9203; the second best entry of 2015 had 0.83 (table 2).
Protocol  the paper trains on 35 partly annotated images of the challenge's training set and is
          scored on its secret test set. We train on the silver truth of the first 85 % of sequence
          01, validate on its other frames, and score SEG and IoU on the gold frames of sequence 02.
          The paper gives neither learning rate nor iterations; these are ours.
Cost      not yet measured.
Data      segjax data prepare cell_tracking/phc_c2dh_u373 --source DIR
Command   python experiments/unet/u373.py --workdir runs/u373
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
    """The paper's U-Net on PhC-C2DH-U373: trained on sequence 01, scored on 02."""

    train: TrainConfig = TrainConfig(
        num_steps=20_000, batch_size=1, eval_every=2000, checkpoint_every=1000
    )
    # Class weights stay at one: we did not have this data set to count its pixels.
    weight_map: WeightMapConfig = WeightMapConfig(gap=4)


def build(config: Config) -> Experiment:
    splits = prepared_splits(
        "cell_tracking/phc_c2dh_u373",
        data_dir=config.data_dir,
        train="silver_01[:85%]",
        evaluation={"validation": "silver_01[85%:]", "test": "gold_02"},
    )
    return cell_experiment(config, splits)


if __name__ == "__main__":
    run(Config, build, __file__)
