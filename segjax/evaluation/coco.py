"""COCO's average precision and recall of boxes and masks.

faster-coco-eval does the counting: COCO's own rules (cocoeval.py of the COCO API) in C++, equal to
pycocotools to the last bits and several times faster. This module adds three things: nothing is
printed, bad input is refused by name, and an undefined score is NaN instead of −1.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from segjax.evaluation.confusion_matrix import mean_of_defined

IouType = Literal["bbox", "segm"]
_KEYS = {"bbox": "bbox", "segm": "segmentation"}
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
        [x, y, width, height], "segmentation", "area", "iscrowd"). Ids of annotations are not read
        and may be equal or missing. (COCO's code takes an object of id 0 for none.)
      detections: a JSON file in COCO's result format, or its content: a list of {"image_id",
        "category_id", "score", and "bbox" or "segmentation" (a mask in run lengths)}. If scores are
        equal, the earlier detection goes first; across images, that of the lower image id.
      iou_type: "bbox" or "segm". It also decides whether a detection's size is that of its box or
        of its mask. (The COCO API always takes the box if results hold both.)
      max_detections: caps on the detections for each image and class, ascending. Recall is reported
        at each cap (AR1, AR10, ...); every other score uses the last cap. LVIS takes 300.

    Returns:
      "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl":
      floats in [0, 1], NaN if there is nothing to find. Small is below 32² pixels, large from 96².
      "per_class": {name of the category: AP}.

    Raises:
      ValueError: the input is not in COCO's format or lacks a key; an image or category is not in
        the ground truth; a mask does not fit its image; a score is not a number; or two categories
        share a name.
    """
    if iou_type not in _KEYS:
        raise ValueError(f'iou_type must be "bbox" or "segm", not {iou_type!r}')
    limits = [*max_detections]
    if not limits or limits != sorted(set(limits)) or limits[0] < 1:
        raise ValueError(f"max_detections must be ascending and at least 1, found {max_detections}")
    source, truth = _read(ground_truth, "the ground truth")
    found_in, found = _read(detections, "the detections")
    truth = _checked_ground_truth(truth, source, iou_type)
    found = _checked_detections(found, found_in, truth, iou_type)

    objects = COCO(truth)
    counting = COCOeval_faster(objects, objects.loadRes(found), iou_type, print_function=_silent)
    counting.params.maxDets = limits
    counting.evaluate()
    counting.accumulate()
    # Precision is [IoU thresholds, recalls, classes, sizes, caps], recall the same without recalls;
    # −1 is undefined.
    precision, recall = (
        np.where(counting.eval[name] < 0, np.nan, counting.eval[name])
        for name in ("precision", "recall")
    )
    thresholds = counting.params.iouThrs
    result: dict[str, Any] = {"AP": mean_of_defined(precision[..., 0, -1])}
    for percent in (50, 75):
        at = np.isclose(thresholds, percent / 100)
        result[f"AP{percent}"] = mean_of_defined(precision[at, ..., 0, -1])
    result |= {
        f"AP{name}": mean_of_defined(precision[..., i, -1]) for i, name in enumerate(_SIZES) if i
    }
    result |= {f"AR{limit}": mean_of_defined(recall[..., 0, i]) for i, limit in enumerate(limits)}
    result |= {
        f"AR{name}": mean_of_defined(recall[..., i, -1]) for i, name in enumerate(_SIZES) if i
    }
    names = {category["id"]: category["name"] for category in truth["categories"]}
    result["per_class"] = {
        names[category]: mean_of_defined(precision[:, :, place, 0, -1])
        for place, category in enumerate(counting.params.catIds)
    }
    return result


def _silent(*_) -> None:
    pass


def _read(source, name: str):
    """Returns a name for errors, and the content."""
    if not isinstance(source, str | os.PathLike):
        return name, source
    try:
        return str(source), json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {name} from {source}: {error}") from error


def _checked_ground_truth(truth, source: str, iou_type: str) -> dict:
    """Copies what counting needs of the ground truth, with new ids from 1."""
    if not isinstance(truth, Mapping):
        raise ValueError(f"{source}: expected COCO's format, an object, found {_kind(truth)}")
    for name in ("images", "categories", "annotations"):
        if not isinstance(truth.get(name), Sequence):
            raise ValueError(f'{source}: expected COCO\'s format, with a list "{name}"')
    images = _copies(truth["images"], ("id", "height", "width"), f"{source}: image")
    categories = _copies(truth["categories"], ("id", "name"), f"{source}: category")
    for rows, key in ((images, "id"), (categories, "id"), (categories, "name")):
        values = [row[key] for row in rows]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            kind = "images" if rows is images else "categories"
            raise ValueError(f"{source}: two {kind} have the {key} {twice!r}")
    keys = ("image_id", "category_id", _KEYS[iou_type], "area", "iscrowd")
    annotations = _copies(truth["annotations"], keys, f"{source}: annotation")
    _check_ids(annotations, images, categories, f"{source}: annotation")
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return {"images": images, "categories": categories, "annotations": annotations}


def _checked_detections(found, source: str, truth: dict, iou_type: str) -> list[dict]:
    """Copies what counting needs of the detections."""
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise ValueError(f"{source}: expected COCO's result format, a list, found {_kind(found)}")
    # Only one of "bbox" and "segmentation": with both, sizes would be those of the boxes.
    keys = ("image_id", "category_id", "score", _KEYS[iou_type])
    found = _copies(found, keys, f"{source}: detection")
    _check_ids(found, truth["images"], truth["categories"], f"{source}: detection")
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    for number, row in enumerate(found):
        if not isinstance(row["score"], int | float | np.number) or not math.isfinite(row["score"]):
            raise ValueError(
                f"{source}: detection {number}: expected a number as score, found {row['score']!r}"
            )
        row["score"] = float(row["score"])
        if iou_type == "bbox":
            continue
        mask, size = row["segmentation"], sizes[row["image_id"]]
        if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), str | bytes):
            raise ValueError(
                f"{source}: detection {number}: expected a mask as compressed run lengths, "
                f"found {mask!r:.40}"
            )
        if list(mask.get("size", ())) != size:
            raise ValueError(
                f"{source}: detection {number}: its mask is for an image of {mask.get('size')}, "
                f"and image {row['image_id']} has (height, width) {size}"
            )
    return found


def _copies(rows, keys: Sequence[str], name: str) -> list[dict]:
    """Copies the `keys` of each row to new dicts."""
    try:
        return [{key: row[key] for key in keys} for row in rows]
    except (KeyError, TypeError) as error:
        number, row = next(
            (number, row)
            for number, row in enumerate(rows)
            if not isinstance(row, Mapping) or any(key not in row for key in keys)
        )
        missing = [key for key in keys if not isinstance(row, Mapping) or key not in row]
        raise ValueError(f"{name} {number} has no {missing[0]!r}") from error


def _check_ids(rows, images, categories, name: str) -> None:
    """Raises ValueError for a row with an unknown image or category."""
    for key, known in (("image_id", images), ("category_id", categories)):
        ids = {entry["id"] for entry in known}
        for number, row in enumerate(rows):
            if row[key] not in ids:
                raise ValueError(
                    f"{name} {number} has {key} {row[key]!r}, which is not in the ground truth"
                )


def _kind(value) -> str:
    return type(value).__name__
