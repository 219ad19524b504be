"""Confusion-matrix scores of semantic segmentation over a whole set of images.

Counts are summed over all images before any ratio is taken. This is the PASCAL VOC protocol
(Everingham et al., 2010); it is not the mean of the images' own IoUs.
"""

from typing import Any

import numpy as np
from scipy import sparse

from segjax.labels import IGNORE_LABEL


def confusion_counts(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    ignore_label: int = IGNORE_LABEL,
) -> np.ndarray:
    """Counts pixels of each (true class, predicted class) pair, int64 [num_classes, num_classes].

    Args:
      labels: integers of any shape, the rows of the result. Pixels equal to `ignore_label` are
        left out, whatever is predicted there.
      predictions: integers of the same shape, the columns of the result.

    Raises:
      ValueError: shapes differ, a value is not an integer, or a counted pixel has a label or a
        prediction outside [0, num_classes).
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels have shape {labels.shape} but predictions have {predictions.shape}"
        )
    counted = counted_pixels(labels, num_classes=num_classes, ignore_label=ignore_label)
    check_class_ids(predictions[counted], f"predictions must be in [0, {num_classes})", num_classes)
    pairs = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def scores(matrix: np.ndarray, *, background: int | None = None) -> dict[str, Any]:
    """Computes all scores of a confusion matrix [num_classes, num_classes] (rows are true classes).

    A class in neither labels nor predictions has no scores: they are NaN and left out of every
    mean, and the class is listed in `absent_classes`. A class that is predicted but never true has
    IoU, Dice and precision 0, which count in the means, because each of its pixels is a mistake.
    Its recall is NaN and left out of `mean_accuracy`. The precision of a class that is never
    predicted is NaN.

    Returns:
      Arrays [num_classes]: `iou`, `dice`, `precision`, `recall` (float64), `support` (int64,
      labelled pixels). Floats: `pixel_accuracy`, `mean_accuracy` (mean recall),
      `frequency_weighted_iou`, `mean_iou` and `mean_dice` over all classes. List of int:
      `absent_classes`. If the class `background` is given, also `mean_iou_without_background` and
      `mean_dice_without_background` over the other classes, and for two classes `foreground_iou`
      and `foreground_dice`, which are those of the other class.
    """
    matrix = np.asarray(matrix, np.int64)
    correct = np.diagonal(matrix)
    support, predicted = matrix.sum(1), matrix.sum(0)
    union = support + predicted - correct
    iou, dice = _ratio(correct, union), _ratio(2 * correct, support + predicted)
    recall = _ratio(correct, support)
    result = {
        "iou": iou,
        "dice": dice,
        "precision": _ratio(correct, predicted),
        "recall": recall,
        "support": support,
        "pixel_accuracy": float(_ratio(correct.sum(), support.sum())),
        "mean_accuracy": mean_of_defined(recall),
        "frequency_weighted_iou": float(
            _ratio((support * np.nan_to_num(iou)).sum(), support.sum())
        ),
        "mean_iou": mean_of_defined(iou),
        "mean_dice": mean_of_defined(dice),
        "absent_classes": np.flatnonzero(union == 0).tolist(),
    }
    if background is not None:
        for name, values in (("iou", iou), ("dice", dice)):
            others = np.delete(values, background)
            result[f"mean_{name}_without_background"] = mean_of_defined(others)
            if len(others) == 1:
                result[f"foreground_{name}"] = float(others[0])
    return result


class ConfusionMatrix:
    """Running confusion matrix of a data set: `update` for each image, `result` at the end.

    Attributes:
      counts: int64 [num_classes, num_classes]; rows are true classes, columns predicted ones.
      background: the class without which further scores are computed; None if there is none.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_label: int = IGNORE_LABEL,
        *,
        background: int | None = None,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.background = background
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Adds the pixels of one image or batch; see `confusion_counts`."""
        self.counts += confusion_counts(
            labels, predictions, num_classes=self.num_classes, ignore_label=self.ignore_label
        )

    def merge(self, other: "ConfusionMatrix") -> None:
        """Adds the counts of `other`, for instance those of another process."""
        mine, theirs = (
            f"num_classes={matrix.num_classes}, ignore_label={matrix.ignore_label}"
            for matrix in (self, other)
        )
        if mine != theirs:
            raise ValueError(f"cannot merge a confusion matrix of {theirs} into one of {mine}")
        self.counts += other.counts

    def result(self) -> dict[str, Any]:
        """Computes the scores of everything counted so far; see `scores`."""
        return scores(self.counts, background=self.background)


def contingency_table(truth_ids: np.ndarray, predicted_ids: np.ndarray) -> sparse.csr_array:
    """Counts pixels of each (true id, predicted id) pair of two segmentations, sparse int64.

    It is `confusion_counts` for segment ids, of which there may be thousands.

    Args:
      truth_ids, predicted_ids: integers ≥ 0 of equal shape; the rows and columns of the result.

    Raises:
      ValueError: shapes differ, or an id is negative or not an integer.
    """
    truth_ids, predicted_ids = np.asarray(truth_ids), np.asarray(predicted_ids)
    if truth_ids.shape != predicted_ids.shape:
        raise ValueError(
            f"true ids have shape {truth_ids.shape} but predicted ids have {predicted_ids.shape}"
        )
    for name, ids in (("true", truth_ids), ("predicted", predicted_ids)):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{name} ids must be integers, not {ids.dtype}")
        if ids.min(initial=0) < 0:
            raise ValueError(f"{name} ids must be at least 0 (background), found {ids.min()}")
    shape = (int(truth_ids.max(initial=0)) + 1, int(predicted_ids.max(initial=0)) + 1)
    ones = np.ones(truth_ids.size, np.int64)
    return sparse.coo_array((ones, (truth_ids.ravel(), predicted_ids.ravel())), shape).tocsr()


def mean_of_defined(values: np.ndarray) -> float:
    """Averages the values that are not NaN; NaN if there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element by element; 0 / 0 is NaN."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)


def counted_pixels(labels: np.ndarray, *, num_classes: int, ignore_label: int) -> np.ndarray:
    """Marks the pixels that are not ignored, bool, after checking that they hold class ids.

    Raises:
      ValueError: labels are not integers, or one is neither in [0, num_classes) nor ignored.
    """
    counted = labels != ignore_label
    expected = f"labels must be in [0, {num_classes}) or {ignore_label} (ignored)"
    check_class_ids(labels[counted], expected, num_classes)
    return counted


def check_class_ids(values: np.ndarray, expected: str, num_classes: int) -> None:
    """Raises a ValueError that starts with `expected` if a value is not in [0, num_classes)."""
    if values.dtype.kind not in "iub":
        raise ValueError(f"{expected}, and integers, not {values.dtype}")
    outside = (values < 0) | (values >= num_classes)
    if outside.any():
        raise ValueError(f"{expected}, found {np.unique(values[outside])[:5].tolist()}")
