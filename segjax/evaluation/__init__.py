"""Scores of predictions, without JAX."""

from segjax.evaluation.boundary import boundary_iou
from segjax.evaluation.cell_tracking import cell_tracking_seg
from segjax.evaluation.coco import evaluate_coco
from segjax.evaluation.confusion_matrix import ConfusionMatrix
from segjax.evaluation.em_segmentation import (
    information_scores,
    pixel_error,
    rand_error,
    rand_scores,
)
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.evaluation.nuclei import instance_map, mean_precision
from segjax.evaluation.panoptic import PanopticQuality, Segments, panoptic_quality
from segjax.evaluation.roc import roc_auc
from segjax.evaluation.warping import warping_error

__all__ = [
    "CocoEvaluator",
    "ConfusionMatrix",
    "PanopticQuality",
    "Segments",
    "boundary_iou",
    "cell_tracking_seg",
    "evaluate_coco",
    "information_scores",
    "instance_map",
    "mean_precision",
    "panoptic_quality",
    "pixel_error",
    "rand_error",
    "rand_scores",
    "roc_auc",
    "warping_error",
]
