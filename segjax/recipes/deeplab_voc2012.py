"""The DeepLab protocol on PASCAL VOC 2012, and the pre-training on COCO with VOC's labels."""

from dataclasses import dataclass
from typing import Literal

from segjax.recipes.deeplab import DeepLabConfig, deeplab_experiment
from segjax.training.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class VocConfig(DeepLabConfig):
    """What the experiments on VOC 2012 have in common."""

    training_set: Literal["train", "train_aug", "trainval", "coco"] = "train_aug"
    """VOC's 1,464 images, the 10,582 with SBD's annotations, all with published labels (for the
    test server: val is then no held-out set), or COCO's with VOC's classes (pre-training)."""


def voc_experiment(config: VocConfig) -> Experiment:
    """Builds the experiment; it is scored on VOC's "val", or COCO's in pre-training."""
    if config.training_set == "coco":
        return deeplab_experiment(config, "coco_voc", train="train", evaluation={"val": "val"})
    return deeplab_experiment(
        config, "voc2012", train=config.training_set, evaluation={"val": "val"}
    )
