"""COCO's average precision and recall of boxes and masks.

faster-coco-eval does the counting: COCO's own rules (cocoeval.py of the COCO API) in C++, equal to
pycocotools to the last bits and several times faster. This module adds three things: nothing is
printed, bad input is refused by name, and an undefined score is NaN instead of −1.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from segjax.evaluation.coco_input import read_content, read_detections, read_truth
from segjax.evaluation.confusion_matrix import mean_of_defined

IouType = Literal["bbox", "segm"]
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_SIZES = ("", "s", "m", "l")  # the order of COCO's area ranges: all, small, medium, large


def evaluate_coco(
    ground_truth: str | os.PathLike | Mapping,
    detections: str | os.PathLike | Sequence[Mapping],
    iou_type: IouType,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
) -> dict[str, Any]:
    """Computes COCO's scores of detections: means over classes and over IoU 0.5, 0.55, ... 0.95.

    By falling score, each detection takes the free true object of its class with the largest IoU.
    Detections of crowds, or of objects outside a range of sizes, count neither for nor against.
    The arguments are not changed.

    Args:
      ground_truth: a JSON file in COCO's format, or its content: "images" ("id", "height",
        "width"), "categories" ("id", "name") and "annotations" ("image_id", "category_id", "bbox"
        [x, y, width, height], "segmentation", "area", "iscrowd", "id"). Annotations of other images
        or categories do not count. Ids of annotations must be there, but may be equal or 0.
      detections: a JSON file in COCO's result format, or its content: a list of {"image_id",
        "category_id", "score", and "bbox" or "segmentation" (a mask in compressed run lengths)}, or
        an array [n, 7] of image id, x, y, width, height, score and category id. If scores are
        equal, the earlier detection goes first; across images, that of the lower image id.
        Detections of other categories do not count. What one of the two keys lacks, the other
        gives: the box of a mask, or the box as a mask. If the first result has a box, the sizes of
        all detections are those of their boxes, also for masks, and masks may be polygons.
      iou_type: "bbox" or "segm", the regions to compare.
      max_detections: caps on the detections for each image and class, ascending. Recall is reported
        at each cap (AR1, AR10, ...); every other score uses the last cap. LVIS takes 300.

    Returns:
      "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl":
      floats in [0, 1], NaN if there is nothing to find. Small is below 32² pixels, large from 96².
      "per_class": {name of the category: AP}; names that several categories share are followed by
      the id.

    Raises:
      ValueError: pycocotools would not score the input either, such as detections of an image that
        is not in the ground truth, or of objects without "area" or "iscrowd"; or a number is NaN,
        or a mask does not fit its image. See `segjax.evaluation.coco_input` for the differences.
    """
    counting, names = _matched(ground_truth, detections, iou_type, max_detections)
    return _scores(_tables(counting), names, max_detections)


def coco_resamples(
    ground_truth: str | os.PathLike | Mapping,
    detections: str | os.PathLike | Sequence[Mapping],
    iou_type: IouType,
    *,
    drawn: np.ndarray,
    max_detections: Sequence[int] = (1, 10, 100),
) -> Iterator[dict[str, Any]]:
    """Yields `evaluate_coco` of sets in which images occur several times or not at all.

    Detections are matched once, in each image. An image that occurs twice counts as two images.

    Args:
      ground_truth, detections, iou_type, max_detections: see `evaluate_coco`.
      drawn: how often each image occurs, int [resamples, images], in the order of image ids.
    """
    counting, names = _matched(ground_truth, detections, iou_type, max_detections)
    if counting is None:
        return
    # faster-coco-eval has an entry for each category, range of sizes and image, in this order.
    images = np.array(counting._evalImgs_cpp, object).reshape(-1, drawn.shape[1])
    for weights in drawn:
        places = np.repeat(np.arange(len(weights)), weights)
        counting._evalImgs_cpp = images[:, places].ravel().tolist()
        yield _scores(_tables(counting), names, max_detections)


def _matched(ground_truth, detections, iou_type, max_detections):
    """Matches detections with objects in each image.

    Returns:
      The `COCOeval_faster`, None without images or categories, and the names of the categories.
    """
    if iou_type not in get_args(IouType):
        raise ValueError(f'iou_type must be "bbox" or "segm", not {iou_type!r}')
    limits = [*max_detections]
    if not limits or limits != sorted(set(limits)) or limits[0] < 1:
        raise ValueError(f"max_detections must be ascending and at least 1, found {max_detections}")
    source, content = read_content(ground_truth, "the ground truth")
    found_in, found = read_content(detections, "the detections")
    truth = read_truth(content, source, iou_type)
    rows = read_detections(found, found_in, truth, iou_type)
    names = [*truth.names.values()]
    if not truth.images or not truth.categories:  # faster-coco-eval takes none for all
        return None, names
    objects, results = COCO(truth.dataset(truth.annotations)), COCO(truth.dataset(rows))
    counting = COCOeval_faster(
        objects, results, iou_type, print_function=_silent, separate_eval=True
    )
    counting.params.maxDets = limits
    counting.evaluate()
    return counting, names


def _tables(counting) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns precision and recall of matched images, in which NaN is undefined.

    Precision is [IoU thresholds, recalls, classes, sizes, caps], recall the same without recalls.
    """
    if counting is None:
        return None
    counting.accumulate()
    precision, recall = (
        np.where(counting.eval[name] < 0, np.nan, counting.eval[name])  # −1 is undefined
        for name in ("precision", "recall")
    )
    return precision, recall


def _scores(tables, names: Sequence[str], max_detections: Sequence[int]) -> dict[str, Any]:
    """Computes the scores of `evaluate_coco`."""
    limits, sizes = [*max_detections], len(_SIZES)
    if tables is None:
        shape = (len(_THRESHOLDS), 101, len(names), sizes, len(limits))
        tables = np.full(shape, np.nan), np.full((shape[0], *shape[2:]), np.nan)
    precision, recall = tables
    result: dict[str, Any] = {"AP": mean_of_defined(precision[..., 0, -1])}
    for percent in (50, 75):
        at = np.isclose(_THRESHOLDS, percent / 100)
        result[f"AP{percent}"] = mean_of_defined(precision[at, ..., 0, -1])
    result |= {
        f"AP{name}": mean_of_defined(precision[..., i, -1]) for i, name in enumerate(_SIZES) if i
    }
    result |= {f"AR{limit}": mean_of_defined(recall[..., 0, i]) for i, limit in enumerate(limits)}
    result |= {
        f"AR{name}": mean_of_defined(recall[..., i, -1]) for i, name in enumerate(_SIZES) if i
    }
    result["per_class"] = {
        name: mean_of_defined(precision[:, :, place, 0, -1]) for place, name in enumerate(names)
    }
    return result


def _silent(*_) -> None:
    pass
