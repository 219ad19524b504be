"""Scores of the pixels near contours: boundary IoU, and confusion within trimaps.

Boundary IoU is the IoU of the pixels near the contours of truth and prediction (Cheng et al.,
"Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021). Trimaps are
bands around the contours of the truth (Kohli, Ladický and Torr, "Robust Higher Order Potentials
for Enforcing Label Consistency", IJCV 2009).
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from segjax.evaluation.confusion_matrix import check_class_ids, confusion_counts, counted_pixels
from segjax.labels import IGNORE_LABEL

Border = Literal["void", "classes"]


def boundary_counts(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    dilation_ratio: float = 0.02,
    ignore_label: int = IGNORE_LABEL,
) -> np.ndarray:
    """Counts intersection and union of the boundary regions of each class in one image.

    A class's boundary region is its mask minus the mask eroded d times by a 3×3 square, with
    d = max(1, round(dilation_ratio · image diagonal)) pixels. As in the authors' code, everything
    beyond the image is outside, so that a mask cut by the image's edge has a boundary there. The
    paper has no ignored pixels. Here they are not counted, and their edge is no boundary, because
    erosion treats them as part of every mask.

    Args:
      labels, predictions: integers [height, width].

    Returns:
      int64 [num_classes, 2]: intersection and union in pixels. Sum over images, then divide.

    Raises:
      ValueError: labels and predictions are not images of one size, dilation_ratio is not
        positive, or a counted pixel has a label or a prediction outside [0, num_classes).
    """
    labels, predictions = _two_images(labels, predictions)
    if dilation_ratio <= 0:
        raise ValueError(f"dilation_ratio must be positive, not {dilation_ratio}")
    distance = max(1, round(dilation_ratio * float(np.hypot(*labels.shape))))
    counted = counted_pixels(labels, num_classes=num_classes, ignore_label=ignore_label)
    check_class_ids(predictions[counted], f"predictions must be in [0, {num_classes})", num_classes)
    counts = np.zeros((num_classes, 2), np.int64)
    for class_id in range(num_classes):
        true = _boundary(labels == class_id, counted, distance)
        predicted = _boundary(predictions == class_id, counted, distance)
        counts[class_id] = (true & predicted).sum(), (true | predicted).sum()
    return counts


def boundary_iou(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    dilation_ratio: float = 0.02,
    ignore_label: int = IGNORE_LABEL,
) -> np.ndarray:
    """Computes the boundary IoU of each class in one image, float64 [num_classes].

    A class in neither labels nor predictions is NaN. Arguments and errors are those of
    `boundary_counts`, which also serves sets of images.
    """
    counts = boundary_counts(
        labels,
        predictions,
        num_classes=num_classes,
        dilation_ratio=dilation_ratio,
        ignore_label=ignore_label,
    )
    return boundary_iou_of_counts(counts)


def boundary_iou_of_counts(counts: np.ndarray) -> np.ndarray:
    """Divides intersection by union, [num_classes, 2] -> [num_classes]; NaN where both are 0."""
    with np.errstate(invalid="ignore"):
        return counts[:, 0] / counts[:, 1]


def trimap_counts(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    widths: Sequence[int],
    border: Border = "void",
    ignore_label: int = IGNORE_LABEL,
) -> np.ndarray:
    """Counts (true class, predicted class) pairs in the bands around borders in one image.

    A band of width w holds the counted pixels within w pixels of a border of the truth. A diagonal
    step counts as one, so that a width of 1 takes the pixels that touch the border.

    Args:
      labels, predictions: integers [height, width].
      widths: widths of the bands, in pixels on each side of the border.
      border: which pixels distances are measured to. "void": the nearest ignored pixel, for VOC's
        annotation, which has ignored pixels along the contours of objects. The DeepLab papers'
        trimaps are these (v1; v2, figure 10; v3+, figure 5); width and square neighbourhood follow
        the authors' script. "classes": the nearest counted pixel of another class, for truth that
        is exact up to the contours, such as Kohli et al. and Krähenbühl and Koltun (NIPS 2011) drew
        for their trimaps.

    Returns:
      int64 [widths, num_classes, num_classes]; rows are true classes.

    Raises:
      ValueError: labels and predictions are not images of one size, a width is below 1, `border`
        is unknown, or a counted pixel has a label or a prediction outside [0, num_classes).
    """
    labels, predictions = _two_images(labels, predictions)
    check_trimaps(widths, border)
    counted = counted_pixels(labels, num_classes=num_classes, ignore_label=ignore_label)
    # A neighbourhood has one class only if its highest and lowest labels agree. 16 bits leave room
    # above 8-bit labels for the value of ignored pixels.
    classes = labels.astype(np.uint16)
    highest = np.where(counted, classes, np.uint16(0))
    lowest = np.where(counted, classes, np.iinfo(np.uint16).max)
    counts = np.zeros((len(widths), num_classes, num_classes), np.int64)
    for place, width in enumerate(widths):
        square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
        if border == "void":
            near = cv2.erode(counted.view(np.uint8), square) == 0
        else:
            near = cv2.dilate(highest, square) != cv2.erode(lowest, square)
        counts[place] = confusion_counts(
            labels[near], predictions[near], num_classes=num_classes, ignore_label=ignore_label
        )
    return counts


def check_trimaps(widths: Sequence[int], border: Border):
    """Raises a ValueError for widths or borders that `trimap_counts` does not take."""
    if min(widths, default=0) < 1:
        raise ValueError(f"widths must be at least 1 pixel, found {tuple(widths)}")
    if border not in ("void", "classes"):
        raise ValueError(f'border must be "void" or "classes", found {border!r}')


def _two_images(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 2 or labels.shape != predictions.shape:
        raise ValueError(
            "boundaries need labels and predictions of one shape [height, width], "
            f"not {labels.shape} and {predictions.shape}"
        )
    return labels, predictions


def _boundary(mask: np.ndarray, counted: np.ndarray, distance: int) -> np.ndarray:
    """Marks the counted pixels of `mask` within `distance` (chessboard) of a pixel outside it."""
    if not mask.any():
        return mask
    inside = (mask | ~counted).astype(np.uint8)
    eroded = cv2.erode(
        inside,
        np.ones((3, 3), np.uint8),
        iterations=distance,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return mask & counted & (eroded == 0)
