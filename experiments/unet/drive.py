"""U-Net on DRIVE: vessels of the retina.

Published foreground Dice 0.7956 (mmsegmentation, U-Net with a DeepLabV3 head and CE + 3 Dice; its
          plain FCN head 0.7932), over the whole image; ROC AUC about 0.979 (quoted in issue 2, its
          source not verified). Not a data set of the U-Net paper.
Protocol  official split, first observer: trained on 21-40, scored on 01-20 at full size; Dice over
          the whole image, ROC AUC within the field of view. No early stopping: the figure is the
          last step's. The loss is CE + 3 Dice of the vessels in each tile; by --variant:
            mmsegmentation-loss  the Dice of the background counts too, as in mmsegmentation
            nnunet-loss          CE + Dice with sums over the whole batch (nnU-Net's batch Dice),
                                 steadier where tiles hold few vessels
Cost      not yet measured for this network; RESULTS.md has narrower ones.
Data      segjax data prepare drive --source DIR
Command   python experiments/unet/drive.py --workdir runs/drive
"""

from dataclasses import dataclass

from segjax.commands.launch import run
from segjax.losses import SemanticLoss
from segjax.recipes.unet_vessels import VesselConfig, vessel_experiment
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class Config(VesselConfig):
    """A padded U-Net on DRIVE."""


VARIANTS = {
    "mmsegmentation-loss": {"loss": SemanticLoss(dice=3.0, dice_background=True)},
    "nnunet-loss": {"loss": SemanticLoss(dice=1.0, dice_over="batch")},
}


def build(config: Config) -> Experiment:
    return vessel_experiment(config, "drive")


if __name__ == "__main__":
    run(Config, build, __file__, variants=VARIANTS)
