"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation", CVPR 2021): the IoU of the pixels near the contours of truth and prediction."""

import cv2
import numpy as np

from segjax.evaluation.confusion_matrix import check_class_ids, counted_pixels


def boundary_counts(
    labels: np.ndarray,
    predictions: np.ndarray,
    *,
    num_classes: int,
    dilation_ratio: float = 0.02,
    ignore_label: int = 255,
) -> np.ndarray:
    """Counts intersection and union of the boundary regions of each class in one image.

    A class's boundary region is its mask minus the mask eroded d times by a 3×3 square, with
    d = max(1, round(dilation_ratio · image diagonal)) pixels; beyond the image everything is
    outside, so that a mask cut by the image's edge has a boundary there (as in the authors' code).
    Ignored pixels are not counted, and the edge of an ignored region is no boundary: erosion
    takes it as part of every mask. (The paper has no ignored pixels.)

    Args:
      labels, predictions: integers [height, width].

    Returns:
      int64 [num_classes, 2]: intersection and union in pixels. Sum over images, then divide.

    Raises:
      ValueError: not two images of one size, dilation_ratio is not positive, or a counted pixel
        has a label or a prediction outside [0, num_classes).
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 2 or labels.shape != predictions.shape:
        raise ValueError(
            "boundaries need labels and predictions of one shape [height, width], "
            f"not {labels.shape} and {predictions.shape}"
        )
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
    ignore_label: int = 255,
) -> np.ndarray:
    """Computes the boundary IoU of each class in one image, float64 [num_classes].

    A class in neither labels nor predictions is NaN. For arguments and errors, and for a set of
    images, see `boundary_counts`.
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
