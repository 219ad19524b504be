"""Scores of nuclei: the 2018 Data Science Bowl's (Caicedo et al., Nature Methods 2019), and PQ."""

from collections.abc import Sequence

import numpy as np

from segjax.coco import run_lengths as rle
from segjax.evaluation.confusion_matrix import contingency_table
from segjax.evaluation.panoptic import Segments, panoptic_quality

_THRESHOLDS = np.arange(10, 20)  # of the IoU in twentieths, exactly: 0.5, 0.55, ... 0.95


def mean_precision(truth_instances: np.ndarray, predicted_instances: np.ndarray) -> float:
    """Computes an image's TP / (TP + FP + FN), averaged over IoU thresholds 0.5, 0.55, ... 0.95.

    A predicted object is a true positive if its IoU with a true object is above the threshold.
    Objects do not overlap, so none can match twice. The competition's score is the mean over
    images.

    Args:
      truth_instances, predicted_instances: integers [height, width], 0 is background.

    Returns:
      A number in [0, 1]; NaN if neither has an object.

    Raises:
      ValueError: shapes differ, or an id is negative or not an integer.
    """
    table = contingency_table(truth_instances, predicted_instances)
    truth_areas, predicted_areas = table.sum(1), table.sum(0)
    overlaps = table.tocoo()
    truth_ids, predicted_ids = overlaps.coords
    objects = (truth_ids > 0) & (predicted_ids > 0)
    intersection = overlaps.data[objects]
    union = truth_areas[truth_ids[objects]] + predicted_areas[predicted_ids[objects]] - intersection
    found = (20 * intersection > _THRESHOLDS[:, None] * union).sum(1)
    count = (truth_areas[1:] > 0).sum() + (predicted_areas[1:] > 0).sum()
    # True positives are in both counts, so the difference is TP + FP + FN.
    return float((found / (count - found)).mean()) if count else float("nan")


def instance_map(masks: Sequence[dict], scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resolves overlaps of masks: a pixel belongs to the mask with the highest score.

    Args:
      masks: n run lengths; see `segjax.coco.run_lengths`.
      scores: [n]; if scores are equal, the pixel belongs to the earlier mask.
      size: height and width of the image.

    Returns:
      int32 [height, width]: 0 is background, i + 1 the remaining pixels of masks[i].

    Raises:
      ValueError: a mask has another size, or there are not as many scores as masks.
    """
    scores, (height, width) = np.asarray(scores), map(int, size)
    if scores.shape != (len(masks),):
        raise ValueError(f"expected a score for each of {len(masks)} masks, found {scores.shape}")
    instances = np.zeros(width * height, np.int32)
    for index in np.argsort(-scores, kind="stable")[::-1]:
        mask = masks[index]
        if list(mask["size"]) != [height, width]:
            raise ValueError(
                f"mask {index} is for an image of {mask['size']}, not of {[height, width]}"
            )
        ends = np.cumsum(rle.decompress(mask["counts"]))
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
            instances[start:end] = index + 1
    return instances.reshape(width, height).T


def example_mean_precision(example: dict, prediction: dict, *, minimum_score: float = 0.5) -> float:
    """Computes `mean_precision` of an example and a prediction, as an `extra` of `CocoEvaluator`.

    The predicted objects are the detections with a score of at least `minimum_score`, without
    overlaps (see `instance_map`). Classes are ignored.

    Args:
      example: "image" and "masks", which do not overlap; see `CocoEvaluator`.
      prediction: "scores" and "masks".
    """
    return mean_precision(*_instance_maps(example, prediction, minimum_score))


def example_panoptic_quality(
    example: dict, prediction: dict, *, minimum_score: float = 0.5
) -> float:
    """Computes the panoptic quality of an example's nuclei, as an `extra` of `CocoEvaluator`.

    All objects are of one class; see `panoptic_quality`. The arguments are those of
    `example_mean_precision`.

    Returns:
      A number in [0, 1]; NaN if there are neither true nor predicted objects.
    """
    # Background is a segment of class 1. As void, it would excuse false positives.
    truth, predicted = (
        Segments(instances + 1, dict.fromkeys(np.unique(instances + 1).tolist(), 0) | {1: 1})
        for instances in _instance_maps(example, prediction, minimum_score)
    )
    return panoptic_quality(truth, predicted, num_classes=2, things=(0,))["PQ_things"]


def _instance_maps(example, prediction, minimum_score) -> tuple[np.ndarray, np.ndarray]:
    """Draws true and predicted objects without overlaps, int32 [height, width] each."""
    size = example["image"].shape[:2]
    truth = np.zeros(size, np.int32)
    for number, mask in enumerate(example["masks"], start=1):
        height, width = mask.pixels.shape
        window = truth[mask.top : mask.top + height, mask.left : mask.left + width]
        window[mask.pixels] = number
    scores = np.asarray(prediction["scores"])
    kept = np.flatnonzero(scores >= minimum_score)
    predicted = instance_map([prediction["masks"][i] for i in kept], scores[kept], size)
    return truth, predicted
