"""U-Net on DRIVE: retinal vessels.

Published foreground Dice over the whole image 0.7956 (mmsegmentation, U-Net with a DeepLabV3 head
          and CE + 3 Dice; its plain FCN head 0.7932); ROC AUC about 0.979 (quoted in issue 2, its
          source not verified). The U-Net paper does not use this data set.
Protocol  official split, first observer: train on 21-40, score 01-20 at full size. Dice is over the
          whole image, ROC AUC within the field of view. No early stopping: the scores are those of
          the last step. The loss is CE + 3 Dice of the vessels in each tile; by --variant:
            mmsegmentation-loss  the Dice of the background counts too, as in mmsegmentation
            nnunet-loss          CE + Dice with sums over the whole batch (nnU-Net's batch Dice),
                                 steadier where tiles hold few vessels
            small                a quarter as wide, three poolings (0.5 million parameters), tiles
                                 of 128², cross-entropy alone, mean over eight rotations and flips:
                                 for a CPU
Cost      not yet measured for this network; RESULTS.md has narrower ones.
Data      segjax data prepare drive --source DIR
Command   python experiments/unet/drive.py --workdir runs/drive
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.recipes.unet_vessels import (
    VesselConfig,
    small_vessel_network,
    vessel_experiment,
)
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class Config(VesselConfig):
    """A padded U-Net on DRIVE."""


VARIANTS = {
    "mmsegmentation-loss": {"loss": SemanticLoss(dice=3.0, dice_background=True)},
    "nnunet-loss": {"loss": SemanticLoss(dice=1.0, dice_over="batch")},
    "small": small_vessel_network(scale=(0.75, 1.5)),
}


def build(config: Config) -> Experiment:
    return vessel_experiment(config, "drive")


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
