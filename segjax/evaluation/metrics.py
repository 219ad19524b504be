"""Metrics that are computed from sums of counts over the examples of a data set.

Each metric is a frozen dataclass with the methods of `Metric`. `SummingEvaluator` adds up their
counts over examples and processes, and computes their results.

An example is a dict with "labels" uint8 [height, width]. Some metrics also need "instances" int32
or "field_of_view" bool of that shape. A prediction is a dict with "probabilities" float32
[height, width, classes] and "labels" uint8 [height, width]. Some metrics also need "instances"
int32 or "unrefined_labels" uint8 of that shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from segjax.evaluation.boundary import (
    Border,
    boundary_counts,
    boundary_iou_of_counts,
    check_trimaps,
    trimap_counts,
)
from segjax.evaluation.cell_tracking import seg_sums
from segjax.evaluation.confusion_matrix import (
    confusion_counts,
    counted_pixels,
    mean_of_defined,
    scores,
)
from segjax.evaluation.em_segmentation import THRESHOLDS, em_counts, em_errors
from segjax.evaluation.image_dice import image_dice_counts, image_dice_of_counts
from segjax.evaluation.roc import average_precision_of_counts, roc_auc_of_counts, roc_counts
from segjax.labels import IGNORE_LABEL

Arrays = Mapping[str, np.ndarray]


class Metric(Protocol):
    """Scores of a data set, computed from counts that are summed over its examples."""

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        """Counts one example.

        Returns:
          int64 or float64 arrays by name. Their shapes are the same for all examples, so that they
          can be summed over examples and processes.
        """
        ...

    def result(self, counts: Arrays) -> dict:
        """Computes the scores from the sum of `counts` over all examples.

        Returns:
          floats, ints or (nested) lists of them by name; undefined scores are NaN.
        """
        ...

    def example_score(self, counts: Arrays) -> float:
        """Computes one score from the `counts` of a single example.

        A task's first metric ranks the examples by it, to show the best and the worst. Higher is
        better; NaN is undefined.
        """
        ...


@dataclass(frozen=True)
class Confusion:
    """All scores of `confusion_matrix.scores`, and the "confusion_matrix" itself.

    Also the Dice coefficient per image, with mean and spread over images; see `image_dice`. The
    score of an example is its mean IoU.
    """

    num_classes: int
    ignore_label: int = IGNORE_LABEL
    background: int | None = None

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        matrix = confusion_counts(
            example["labels"],
            prediction["labels"],
            num_classes=self.num_classes,
            ignore_label=self.ignore_label,
        )
        return {"confusion": matrix} | image_dice_counts(matrix, background=self.background)

    def result(self, counts: Arrays) -> dict:
        matrix = counts["confusion"]
        values = scores(matrix, background=self.background) | image_dice_of_counts(counts)
        values["confusion_matrix"] = matrix
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }

    def example_score(self, counts: Arrays) -> float:
        return scores(counts["confusion"])["mean_iou"]


@dataclass(frozen=True)
class Unrefined:
    """Scores of the labels before refinement: mean IoU and pixel accuracy.

    The results are "unrefined_mean_iou" and "unrefined_pixel_accuracy". The score of an example is
    its mean IoU.
    """

    num_classes: int
    ignore_label: int = IGNORE_LABEL

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        unrefined = {"labels": prediction["unrefined_labels"]}
        return {"unrefined": self._confusion.counts(example, unrefined)["confusion"]}

    def result(self, counts: Arrays) -> dict:
        values = scores(counts["unrefined"])
        return {f"unrefined_{name}": values[name] for name in ("mean_iou", "pixel_accuracy")}

    def example_score(self, counts: Arrays) -> float:
        return scores(counts["unrefined"])["mean_iou"]

    @property
    def _confusion(self) -> Confusion:
        return Confusion(self.num_classes, self.ignore_label)


@dataclass(frozen=True)
class BoundaryIou:
    """`boundary_iou` of each class and `mean_boundary_iou` over the classes that occur.

    Intersection and union are summed over images. See `boundary.boundary_counts`.
    """

    num_classes: int
    dilation_ratio: float = 0.02
    ignore_label: int = IGNORE_LABEL

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        counts = boundary_counts(
            example["labels"],
            prediction["labels"],
            num_classes=self.num_classes,
            dilation_ratio=self.dilation_ratio,
            ignore_label=self.ignore_label,
        )
        return {"boundary": counts}

    def result(self, counts: Arrays) -> dict:
        iou = boundary_iou_of_counts(counts["boundary"])
        return {"boundary_iou": iou.tolist(), "mean_boundary_iou": mean_of_defined(iou)}

    def example_score(self, counts: Arrays) -> float:
        return mean_of_defined(boundary_iou_of_counts(counts["boundary"]))


@dataclass(frozen=True)
class TrimapIou:
    """Mean IoU and pixel accuracy in bands of several widths around the borders of the truth.

    Results are named by width: `trimap_mean_iou_4` and `trimap_pixel_accuracy_4` for 4 pixels on
    each side. The DeepLab papers plot the first. Kohli et al., and Krähenbühl and Koltun, plot one
    minus the second. Counts are summed over images. Classes that do not occur in a band are left
    out of its mean. For `border` see `boundary.trimap_counts`. The score of an example is the mean
    IoU of the first band.
    """

    num_classes: int
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    border: Border = "void"
    ignore_label: int = IGNORE_LABEL

    def __post_init__(self):
        check_trimaps(self.widths, self.border)

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        counts = trimap_counts(
            example["labels"],
            prediction["labels"],
            num_classes=self.num_classes,
            widths=self.widths,
            border=self.border,
            ignore_label=self.ignore_label,
        )
        return {"trimap": counts}

    def result(self, counts: Arrays) -> dict:
        result = {}
        for width, matrix in zip(self.widths, counts["trimap"], strict=True):
            values = scores(matrix)
            result[f"trimap_mean_iou_{width}"] = values["mean_iou"]
            result[f"trimap_pixel_accuracy_{width}"] = values["pixel_accuracy"]
        return result

    def example_score(self, counts: Arrays) -> float:
        return scores(counts["trimap"][0])["mean_iou"]


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """`negative_log_likelihood`: the mean −log probability of the true class over counted pixels.

    It is the cross-entropy without pixel weights. A probability of 0 counts as the smallest normal
    float32 (−log = 87.3), so that one pixel cannot make the mean infinite.
    """

    ignore_label: int = IGNORE_LABEL

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        labels, probabilities = example["labels"], prediction["probabilities"]
        if probabilities.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels have shape {labels.shape} but probabilities {probabilities.shape}"
            )
        counted = counted_pixels(
            labels, num_classes=probabilities.shape[-1], ignore_label=self.ignore_label
        )
        classes = labels[counted].astype(np.int64)
        of_truth = np.take_along_axis(probabilities[counted], classes[:, None], axis=1)
        log = np.log(np.maximum(of_truth.astype(np.float64), np.finfo(np.float32).tiny))
        return {"nll_sum": np.array(-log.sum()), "nll_pixels": np.array(len(classes), np.int64)}

    def result(self, counts: Arrays) -> dict:
        pixels = int(counts["nll_pixels"])
        mean = float(counts["nll_sum"]) / pixels if pixels else float("nan")
        return {"negative_log_likelihood": mean}

    def example_score(self, counts: Arrays) -> float:
        return -self.result(counts)["negative_log_likelihood"]


@dataclass(frozen=True)
class RocAuc:
    """`roc_auc` and `average_precision` of one class against the rest, over all counted pixels.

    Pixels count if they are not ignored and lie in the example's "field_of_view", if it has one.
    Both are computed from histograms of the probability; see `roc.roc_counts`.
    """

    positive_class: int = 1
    ignore_label: int = IGNORE_LABEL

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        labels = example["labels"]
        counted = labels != self.ignore_label
        if "field_of_view" in example:
            counted &= example["field_of_view"]
        probabilities = prediction["probabilities"][..., self.positive_class]
        return {"roc": roc_counts(labels == self.positive_class, probabilities, mask=counted)}

    def result(self, counts: Arrays) -> dict:
        return {
            "roc_auc": roc_auc_of_counts(counts["roc"]),
            "average_precision": average_precision_of_counts(counts["roc"]),
        }

    def example_score(self, counts: Arrays) -> float:
        return roc_auc_of_counts(counts["roc"])


@dataclass(frozen=True)
class EmErrors:
    """The errors of ISBI 2012, each at its best threshold over all slices; see `em_errors`.

    Class 1 is cell interior, class 0 membrane. The score of an example is 1 − its Rand error.
    """

    thresholds: tuple[float, ...] = THRESHOLDS

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        cells = prediction["probabilities"][..., 1]
        return em_counts(example["labels"], cells, thresholds=self.thresholds)

    def result(self, counts: Arrays) -> dict:
        return em_errors(counts, thresholds=self.thresholds)

    def example_score(self, counts: Arrays) -> float:
        return 1 - self.result(counts)["rand_error"]


@dataclass(frozen=True)
class CellTracking:
    """`seg` of the Cell Tracking Challenge and the number of true objects, `seg_objects`.

    Needs "instances" in example and prediction. See `cell_tracking.seg_sums`.
    """

    def counts(self, example: Arrays, prediction: Arrays) -> dict[str, np.ndarray]:
        for name, arrays in (("example", example), ("prediction", prediction)):
            if "instances" not in arrays:
                raise ValueError(f'SEG needs "instances" in the {name}, which has {list(arrays)}')
        total, objects = seg_sums(example["instances"], prediction["instances"])
        return {"seg_sum": np.array(total), "seg_objects": np.array(objects, np.int64)}

    def result(self, counts: Arrays) -> dict:
        objects = int(counts["seg_objects"])
        seg = float(counts["seg_sum"]) / objects if objects else float("nan")
        return {"seg": seg, "seg_objects": objects}

    def example_score(self, counts: Arrays) -> float:
        return self.result(counts)["seg"]
