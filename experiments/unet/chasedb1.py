"""U-Net on CHASE_DB1: retinal vessels of children.

Published foreground Dice 0.8047 (mmsegmentation, U-Net with a DeepLabV3 head and CE; its plain FCN
          head 0.8024). The U-Net paper does not use this data set.
Protocol  the usual split, first observer: train on the first 20 images, score the last 8 at full
          size. No early stopping: the score is that of the last step. --variant small is
          drive.py's with smaller magnifications, for a CPU.
Cost      not yet measured.
Data      segjax data prepare chasedb1 --source DIR
Command   python experiments/unet/chasedb1.py --workdir runs/chasedb1
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.recipes.unet import UNetConfig
from segjax.recipes.unet_vessels import (
    VesselConfig,
    small_vessel_network,
    vessel_experiment,
)
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class Config(VesselConfig):
    """A padded U-Net on CHASE_DB1, whose images, and so its tiles, are larger than DRIVE's."""

    network: UNetConfig = UNetConfig(padding="SAME", norm="batch", tile=128)


VARIANTS = {
    "small": small_vessel_network(scale=(0.5, 1.25)),
}


def build(config: Config) -> Experiment:
    return vessel_experiment(config, "chasedb1")


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
