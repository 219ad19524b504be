"""Mask R-CNN's protocol on COCO 2017."""

from segjax.coco.classes import COCO_CATEGORIES
from segjax.recipes.mask_rcnn import MaskRCNNExperimentConfig, mask_rcnn_experiment
from segjax.training.experiment import Experiment


def coco_experiment(config: MaskRCNNExperimentConfig) -> Experiment:
    """Builds the experiment: trained on train2017, scored on val2017 with COCO's own class ids."""
    return mask_rcnn_experiment(
        config,
        "coco",
        train="train",
        evaluation={"val": "val"},
        category_ids=tuple(COCO_CATEGORIES),
    )
