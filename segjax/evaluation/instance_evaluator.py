"""Collects detections over the examples of a data set and over processes, and scores them."""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from faster_coco_eval import mask as coco_masks

from segjax.coco import run_lengths as rle
from segjax.coco.ids import id_order
from segjax.evaluation.bootstrap import percentile_intervals, resampled_counts
from segjax.evaluation.coco import IouType, coco_resamples, evaluate_coco

RESAMPLES = 200
_NAMES = {"bbox": "box", "segm": "mask"}
_SHOWN_SCORE = 0.5  # detections below this do not count in an example's score


class CocoEvaluator:
    """An evaluator of `segjax.tasks` that gives COCO's scores of boxes and of masks.

    An example has "id" (a str, unique), "image" [H, W, C], "boxes" float [n, 4], "classes" int [n],
    "masks" (n objects with `top`, `left` and `pixels`, bool [h, w]), "crowd" bool [n], "areas"
    float [n], perhaps "image_id" and perhaps those entries that `CocoInstances` adds: "has_mask"
    bool [n], "annotated_boxes" [n, 4] and "annotated_areas" [n]. Scores of masks ignore an object
    without a mask, as they ignore a crowd that fills its box. A prediction has "boxes" [d, 4],
    "scores" [d], "classes" [d] and "masks" (d run lengths). Boxes are [x_min, y_min, x_max, y_max]
    in pixels of the image, and classes are 1..K. Scores of boxes alone need no masks on either
    side.

    Args:
      classes: names of the classes, the background first.
      category_ids: ids of the classes 1..K in `ground_truth` and `detections`; by default 1..K.
      iou_types: what to score; the last one also scores single examples.
      extra: further scores by name: functions of (example, prediction), such as
        `nuclei.example_mean_precision`. The result is their mean over examples, without NaN.
      max_detections: see `evaluate_coco`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        category_ids: Sequence[int | str] | None = None,
        iou_types: Sequence[IouType] = ("bbox", "segm"),
        extra: Mapping[str, Callable[[dict, dict], float]] | None = None,
        max_detections: Sequence[int] = (1, 10, 100),
    ):
        if len(set(classes)) < len(classes):
            raise ValueError(f"expected different names of classes, found {list(classes)}")
        self._classes = tuple(classes)
        self._category_ids = tuple(category_ids or range(1, len(classes)))
        if len(self._category_ids) != len(self._classes) - 1:
            raise ValueError(
                f"expected a category id for each of {len(classes) - 1} classes besides the "
                f"background, found {len(self._category_ids)}"
            )
        self._iou_types = tuple(iou_types)
        self._extra = dict(extra or {})
        self._max_detections = tuple(max_detections)
        self._images = []

    def update(self, example: dict, prediction: dict) -> float:
        """Adds one example.

        Returns:
          The panoptic quality of its objects (Kirillov et al., 2019): the summed IoU of matches,
          over the mean number of true and predicted objects. Detections count from a score of 0.5.
          They match objects of their class with an IoU of at least 0.5, the largest IoU first.
          Unmatched detections on crowds are left out. NaN if there are neither objects nor
          detections.

        Raises:
          ValueError: a class is outside 1..K, or a mask is not of the image's size.
        """
        height, width = (int(side) for side in example["image"].shape[:2])
        image = {"id": str(example["id"]), "size": [height, width]}
        if "image_id" in example:
            number = example["image_id"]
            image["image_id"] = number if isinstance(number, str) else int(number)
        areas = "annotated_areas" if "annotated_areas" in example else "areas"
        names = {"area": areas, "iscrowd": "crowd"}
        if "has_mask" in example:
            names["has_mask"] = "has_mask"
        image["truth"] = self._objects(example, example["id"], names)
        if "annotated_boxes" in example:
            image["truth"]["bbox"] = np.asarray(example["annotated_boxes"], np.float64).tolist()
        image["found"] = self._objects(prediction, example["id"], {"score": "scores"})
        if "segm" in self._iou_types:
            image["truth"]["segmentation"] = [
                rle.encode(mask.pixels, size=(height, width), top=mask.top, left=mask.left)[
                    "counts"
                ]
                for mask in example["masks"]
            ]
            for mask in prediction["masks"]:
                if list(mask["size"]) != [height, width]:
                    raise ValueError(
                        f"{example['id']}: a predicted mask is for an image of {mask['size']}, and "
                        f"the image has (height, width) {[height, width]}"
                    )
            image["found"]["segmentation"] = [mask["counts"] for mask in prediction["masks"]]
        image["extra"] = {
            name: float(score(example, prediction)) for name, score in self._extra.items()
        }
        self._images.append(image)
        return _quality(image, self._iou_types[-1])

    def state(self) -> bytes:
        """Returns the examples so far, as compressed JSON."""
        return zlib.compress(json.dumps(self._images).encode(), level=1)

    def merge(self, state: bytes) -> None:
        """Adds the `state` of another process's evaluator; the order of merging changes nothing."""
        self._images += json.loads(zlib.decompress(state))

    def result(self) -> dict:
        """Returns all scores by name; empty if no example was added.

        "box_AP", "box_AP50", ..., "mask_AP", ...: see `evaluate_coco`. Then the `extra` scores,
        and "per_class_box_AP" and "per_class_mask_AP", lists in the order of the classes with NaN
        for the background.
        """
        if not self._images:
            return {}
        result, per_class = {}, {}
        for iou_type in self._iou_types:
            scores = evaluate_coco(
                *self._compared(iou_type), iou_type, max_detections=self._max_detections
            )
            name, by_class = _NAMES[iou_type], scores.pop("per_class")
            result |= {f"{name}_{key}": value for key, value in scores.items()}
            per_class[f"per_class_{name}_AP"] = [
                math.nan,
                *(by_class[class_name] for class_name in self._classes[1:]),
            ]
        for name in self._extra:
            values = [image["extra"][name] for image in self._images]
            defined = [value for value in values if not math.isnan(value)]
            # An exact sum does not depend on the order of processes.
            result[name] = math.fsum(defined) / len(defined) if defined else math.nan
        return result | per_class

    def intervals(self) -> dict[str, list[float]]:
        """Returns the 95 % interval [low, high] over images of each score that is a float.

        It comes from 200 resamples; see `segjax.evaluation.bootstrap`. Empty if fewer than two
        examples were added.
        """
        images = [image for _, image in self._numbered()]
        if len(images) < 2:
            return {}
        drawn = resampled_counts(len(images), RESAMPLES)
        intervals = {}
        for iou_type in self._iou_types:
            scores = coco_resamples(
                *self._compared(iou_type),
                iou_type,
                drawn=drawn,
                max_detections=self._max_detections,
            )
            found = percentile_intervals(scores)
            intervals |= {f"{_NAMES[iou_type]}_{name}": x for name, x in found.items()}
        values = {
            name: np.array([image["extra"][name] for image in images]) for name in self._extra
        }
        means = (
            {name: _mean_of_drawn(each, weights) for name, each in values.items()}
            for weights in drawn
        )
        return intervals | percentile_intervals(means)

    def _compared(self, iou_type: IouType) -> tuple[dict, list[dict]]:
        """Returns the ground truth and the detections whose boxes or masks are compared."""
        # Without boxes, the sizes of masks are those of masks, as in detectron2.
        other = {"bbox": "segmentation", "segm": "bbox"}[iou_type]
        rows = [{key: row[key] for key in row if key != other} for row in self.detections()]
        return self.ground_truth(iou_type), rows

    def ground_truth(self, iou_type: IouType | None = None) -> dict:
        """Returns the examples so far in COCO's format: "images", "categories", "annotations".

        Args:
          iou_type: with "segm", objects without a mask are crowds, which scores ignore. Otherwise
            they have no "segmentation".
        """
        categories = [
            {"id": number, "name": name}
            for number, name in zip(self._category_ids, self._classes[1:], strict=True)
        ]
        images, annotations = [], []
        for number, image in self._numbered():
            height, width = image["size"]
            images.append(
                {"id": number, "file_name": image["id"], "height": height, "width": width}
            )
            for annotation in self._rows(image, "truth", number):
                has_mask = annotation.pop("has_mask", True)
                if not has_mask and iou_type == "segm":
                    annotation["iscrowd"] = 1
                elif not has_mask:
                    annotation.pop("segmentation", None)
                annotations.append(annotation)
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        return {"images": images, "categories": categories, "annotations": annotations}

    def detections(self, category_ids: Sequence[int | str] | None = None) -> list[dict]:
        """Returns the predictions so far in COCO's result format, for instance for its servers.

        Args:
          category_ids: ids of the classes 1..K, if they are others than the evaluator's.
        """
        return [
            row
            for number, image in self._numbered()
            for row in self._rows(image, "found", number, category_ids)
        ]

    @property
    def has_image_ids(self) -> bool:
        """Whether the examples have image ids; without them, images are numbered by their names."""
        return all("image_id" in image for image in self._images)

    def _numbered(self) -> list[tuple[int | str, dict]]:
        """Returns (image id, image) pairs, in an order independent of the order of examples."""
        if self.has_image_ids:
            ordered = sorted(self._images, key=lambda image: id_order(image["image_id"]))
            return [(image["image_id"], image) for image in ordered]
        return list(enumerate(sorted(self._images, key=lambda image: image["id"]), start=1))

    def _objects(self, entries: Mapping, example_id, names: Mapping[str, str]) -> dict:
        """Returns the objects of an example or a prediction as lists of numbers, ready for JSON."""
        classes = np.asarray(entries["classes"])
        if classes.size and not (classes.min() >= 1 and classes.max() < len(self._classes)):
            raise ValueError(
                f"{example_id}: expected classes in 1..{len(self._classes) - 1}, found "
                f"{classes.min()} to {classes.max()}"
            )
        boxes = np.asarray(entries["boxes"], np.float64).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        lists = {name: np.asarray(entries[key]).tolist() for name, key in names.items()}
        return {"class": classes.tolist(), "bbox": boxes.tolist(), **lists}

    def _rows(
        self,
        image: Mapping,
        kind: str,
        number: int | str,
        category_ids: Sequence[int | str] | None = None,
    ) -> list[dict]:
        """Returns the objects of an image as COCO's annotations or results."""
        ids = self._category_ids if category_ids is None else category_ids
        names = [name for name in image[kind] if name != "class"]
        rows = []
        for class_id, *values in zip(
            *(image[kind][name] for name in ["class", *names]), strict=True
        ):
            row = {"image_id": number, "category_id": ids[class_id - 1]}
            row |= dict(zip(names, values, strict=True))
            if "segmentation" in row:
                row["segmentation"] = {"size": image["size"], "counts": row["segmentation"]}
            if "iscrowd" in row:
                row["iscrowd"] = int(row["iscrowd"])
            rows.append(row)
        return rows


def _mean_of_drawn(values: np.ndarray, weights: np.ndarray) -> float:
    """Averages the values that are not NaN, each as often as its image was drawn."""
    counted = ~np.isnan(values)
    total = weights[counted].sum()
    return float(values[counted] @ weights[counted] / total) if total else math.nan


def _quality(image: Mapping, iou_type: IouType) -> float:
    """Computes the score of an example; see `CocoEvaluator.update`."""
    truth, found = image["truth"], image["found"]
    shown = np.flatnonzero(np.asarray(found["score"]) >= _SHOWN_SCORE)
    crowd = np.asarray(truth["iscrowd"], bool)
    if iou_type == "segm" and "has_mask" in truth:
        crowd |= ~np.asarray(truth["has_mask"], bool)
    if not shown.size or not crowd.size:
        count = (shown.size + np.count_nonzero(~crowd)) / 2
        return 0.0 if count else math.nan
    key = "bbox" if iou_type == "bbox" else "segmentation"

    def regions(values):
        return values if key == "bbox" else [{"size": image["size"], "counts": v} for v in values]

    overlaps = np.asarray(
        coco_masks.iou(
            regions([found[key][index] for index in shown]),
            regions(truth[key]),
            crowd.astype(int).tolist(),
        )
    )
    same = np.asarray(found["class"])[shown][:, None] == np.asarray(truth["class"])
    overlaps = np.where(same, overlaps, 0)
    on_crowd = (overlaps[:, crowd] >= 0.5).any(axis=1)
    overlaps = np.where(crowd, 0, overlaps)
    total, matched = 0.0, np.zeros(len(shown), bool)
    while overlaps.size and overlaps.max() >= 0.5:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        total, matched[row] = total + float(overlaps[row, column]), True
        overlaps[row], overlaps[:, column] = 0, 0
    count = (np.count_nonzero(matched | ~on_crowd) + np.count_nonzero(~crowd)) / 2
    return total / count if count else math.nan
