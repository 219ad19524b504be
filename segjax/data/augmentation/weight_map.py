"""U-Net's pixel weights (2015, equation 2): class balance, and gaps between close cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from segjax.labels import IGNORE_LABEL


def weight_map(
    labels: np.ndarray,
    instances: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Weighs each pixel by w(x) = w_c(x) + w0·exp(−(d1(x) + d2(x))² / 2σ²).

    w_c balances the classes; d1 and d2 are the distances to the nearest and the second nearest
    cell. The paper adds the second term for all x. We add it to background pixels only: it should
    make the network learn the narrow background between touching cells, and equal weights on the
    rims of those cells would cancel that.

    Args:
      labels: [H, W] class ids, 0 = background, 255 = ignored.
      instances: [H, W] cell ids, 0 = none. Pixels with label 0 belong to no cell, so that gaps
        between touching cells need to be cut in the labels only.
      w0: weight of a gap of no width; the paper's value.
      sigma: pixels; the paper's value is about 5.
      class_weights: w_c of each class id, by default `balanced_class_weights` of these labels. On
        small tiles that gives a rare class a very large weight; better use weights of the whole
        training set.

    Returns:
      float32 [H, W], 0 where the label is 255.

    Raises:
      ValueError: shapes differ, an instance id is negative, `sigma` is not positive, or a label
        has no class weight.
    """
    if labels.shape != instances.shape:
        raise ValueError(f"labels are {labels.shape} but instances {instances.shape}")
    counts = np.bincount(labels.ravel(), minlength=IGNORE_LABEL + 1)
    counts[IGNORE_LABEL] = 0
    if class_weights is None:
        class_weights = balanced_class_weights(counts)
    elif counts[len(class_weights) :].any():
        unknown = len(class_weights) + np.flatnonzero(counts[len(class_weights) :])[0]
        raise ValueError(f"label {unknown} occurs but there are {len(class_weights)} class_weights")
    weight_of_label = np.zeros(len(counts), np.float32)
    weight_of_label[: len(class_weights)] = class_weights
    weight_of_label[IGNORE_LABEL] = 0
    background = labels == 0
    term = separation_term(np.where(background, 0, instances), w0=w0, sigma=sigma)
    return weight_of_label[labels] + term * background


def balanced_class_weights(pixel_counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Weights that give all classes equal influence and average to 1 over the counted pixels.

    Args:
      pixel_counts: number of pixels of each class, without ignored ones.

    Returns:
      float64 [classes]: pixels / (classes that occur · pixels of this class); 0 for a class that
      does not occur.
    """
    counts = np.asarray(pixel_counts, np.float64)
    occurs = counts > 0
    share = counts.sum() / max(np.count_nonzero(occurs), 1)
    return np.divide(share, counts, out=np.zeros_like(counts), where=occurs)


def separation_term(instances: np.ndarray, *, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Computes w0·exp(−(d1 + d2)² / 2σ²) for each pixel.

    d1 and d2 are Euclidean distances between pixel centres, from the pixel to the nearest pixel of
    the nearest and of the second nearest cell: 1 beside a cell, 0 inside it. Cells farther away
    than 6σ, where the term is below 1e-7·w0, are not searched. With fewer than two cells the term
    is 0.

    Args:
      instances: [H, W] cell ids, 0 = none.
      w0: the value for d1 = d2 = 0.
      sigma: pixels.

    Returns:
      float32 [H, W].

    Raises:
      ValueError: an id is negative, or `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if instances.min(initial=0) < 0:
        raise ValueError(f"instance ids must not be negative, got {instances.min()}")
    if instances.max(initial=0) > instances.size:  # sparse ids, such as COCO's
        _, ranks = np.unique(np.append(instances, 0), return_inverse=True)
        instances = ranks[:-1].reshape(instances.shape)
    height, width = instances.shape
    reach = int(np.ceil(6 * sigma))
    nearest = np.full((height, width), np.inf, np.float32)  # squared distances
    second = nearest.copy()
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        rows, columns = box
        window = (
            slice(max(rows.start - reach, 0), min(rows.stop + reach, height)),
            slice(max(columns.start - reach, 0), min(columns.stop + reach, width)),
        )
        elsewhere = (instances[window] != number).view(np.uint8)
        distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Squared distances are whole numbers; OpenCV's last bit depends on memory alignment.
        squared = np.rint(np.square(distance, out=distance), out=distance)
        further = np.maximum(nearest[window], squared)
        np.minimum(second[window], further, out=second[window])
        np.minimum(nearest[window], squared, out=nearest[window])
    total = np.sqrt(nearest, out=nearest) + np.sqrt(second, out=second)
    return w0 * np.exp(np.square(total) * np.float32(-0.5 / sigma**2))


@dataclass(frozen=True, kw_only=True)
class AddWeightMap:
    """Transform: adds "weights", computed by `weight_map` from "labels" and "instances".

    Put it after geometric transforms, which move the borders that the weights follow.
    """

    w0: float = 10.0
    sigma: float = 5.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        if "instances" not in example:
            raise ValueError(
                "the weight map needs 'instances': a class mask alone does not define distances "
                "to cells"
            )
        weights = weight_map(
            example["labels"],
            example["instances"],
            w0=self.w0,
            sigma=self.sigma,
            class_weights=self.class_weights,
        )
        return {**example, "weights": weights}
