"""The pixel weights of U-Net (2015, equation 2): class balance, and gaps between close cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

IGNORE_LABEL = 255


def weight_map(
    labels: np.ndarray,
    instances: np.ndarray,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    class_weights: Sequence[float] | None = None,
) -> np.ndarray:
    """Weighs each pixel by w(x) = w_c(x) + w0·exp(−(d1(x) + d2(x))² / 2σ²).

    w_c balances the classes; d1 and d2 are the distances to the nearest and the second nearest
    cell. The paper writes the second term for all x. Here it is added to background pixels only:
    it is there to force the network to learn the narrow background between touching cells, and
    weighing the rims of those cells as much would take that preference away again.

    Args:
      labels: [H, W] class ids, 0 = background, 255 = ignored.
      instances: [H, W] cell ids, 0 = none. A cell is where its id stands and `labels` is not 0, so
        that instances need not have the gaps that were cut between touching cells in the labels.
      w0: weight of a gap of no width; the paper's value.
      sigma: pixels; the paper's value is about 5.
      class_weights: w_c of each class id. By default those of `balanced_class_weights` for the
        classes in these labels. On small tiles a class of few pixels then gets a very large
        weight: prefer the weights of the whole training set there.

    Returns:
      float32 [H, W], 0 where the label is 255.

    Raises:
      ValueError: shapes differ, an instance id is negative, `sigma` is not positive, or a label
        has no class weight.
    """
    if labels.shape != instances.shape:
        raise ValueError(f"labels are {labels.shape} but instances {instances.shape}")
    counts = np.bincount(labels.ravel(), minlength=256)
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


def balanced_class_weights(pixel_counts: Sequence[int]) -> np.ndarray:
    """Weights that let each class count alike and average to 1 over all the pixels counted.

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
    the nearest and of the second nearest cell: 1 beside a cell, 0 inside it. Cells further away
    than 6σ, where the term is below 1e-7·w0, are not looked for; with fewer than two, it is 0.

    Args:
      instances: [H, W] cell ids, 0 = none.
      w0: value at a pixel that two cells would share.
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
    if instances.max(initial=0) > instances.size:  # ids of another numbering, such as COCO's
        _, ranks = np.unique(np.append(instances, 0), return_inverse=True)
        instances = ranks[:-1].reshape(instances.shape)
    height, width = instances.shape
    reach = int(np.ceil(6 * sigma))
    nearest = np.full((height, width), np.inf, np.float32)  # squared, as all distances here
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
        # Rounding to the whole number that it is: OpenCV's last bit depends on memory alignment.
        squared = np.rint(np.square(distance, out=distance), out=distance)
        further = np.maximum(nearest[window], squared)
        np.minimum(second[window], further, out=second[window])
        np.minimum(nearest[window], squared, out=nearest[window])
    total = np.sqrt(nearest, out=nearest) + np.sqrt(second, out=second)
    return w0 * np.exp(np.square(total) * np.float32(-0.5 / sigma**2))


@dataclass(frozen=True, kw_only=True)
class AddWeightMap:
    """Transform: adds "weights" by `weight_map`, from "labels" and "instances".

    Put it after the geometric transforms: they move the borders that the weights follow.
    """

    w0: float = 10.0
    sigma: float = 5.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        if "instances" not in example:
            raise ValueError(
                "the weight map needs 'instances': distances to cells of a class mask "
                "alone are not defined"
            )
        weights = weight_map(
            example["labels"],
            example["instances"],
            w0=self.w0,
            sigma=self.sigma,
            class_weights=self.class_weights,
        )
        return {**example, "weights": weights}
