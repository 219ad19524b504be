"""SEG, the segmentation measure of the Cell Tracking Challenge (Maška et al., Bioinformatics 2014;
Ulman et al., Nature Methods 2017)."""

import numpy as np

from segjax.evaluation.confusion_matrix import contingency_table


def seg_sums(truth_instances: np.ndarray, predicted_instances: np.ndarray) -> tuple[float, int]:
    """Sums the Jaccard index over the true objects of one frame, and counts them.

    A true object R is matched by the predicted object S that covers more than half of it,
    |R ∩ S| > |R| / 2; there is at most one. Its Jaccard index is |R ∩ S| / |R ∪ S|, or 0 without a
    match. Unmatched predictions cost nothing, so that partly annotated frames can be scored.

    Args:
      truth_instances, predicted_instances: integers [height, width], 0 is background. Ids need
        not agree between the two.

    Returns:
      (sum of Jaccard indices, number of true objects), to be summed over frames: SEG is the mean
      over all objects of all frames, not the mean of the frames' means.

    Raises:
      ValueError: shapes differ, or an id is negative or not an integer.
    """
    table = contingency_table(truth_instances, predicted_instances)
    truth_areas, predicted_areas = table.sum(1), table.sum(0)
    overlaps = table.tocoo()
    truth_ids, predicted_ids = overlaps.coords
    matched = (truth_ids > 0) & (predicted_ids > 0) & (2 * overlaps.data > truth_areas[truth_ids])
    intersection = overlaps.data[matched]
    areas = truth_areas[truth_ids[matched]] + predicted_areas[predicted_ids[matched]]
    jaccard = intersection / (areas - intersection)
    return float(jaccard.sum()), int((truth_areas[1:] > 0).sum())


def cell_tracking_seg(truth_instances: np.ndarray, predicted_instances: np.ndarray) -> float:
    """Computes SEG, the mean Jaccard index over all true objects of all frames.

    Args:
      truth_instances, predicted_instances: integers [height, width] or [frames, height, width].
        Each frame is matched on its own, so that ids may recur. See `seg_sums`.

    Returns:
      A number in [0, 1]; NaN if the truth has no object.
    """
    truth, predicted = np.asarray(truth_instances), np.asarray(predicted_instances)
    if truth.ndim not in (2, 3) or truth.shape != predicted.shape:
        raise ValueError(
            "SEG needs truth and prediction of one shape [height, width] or [frames, height, "
            f"width], not {truth.shape} and {predicted.shape}"
        )
    frames = zip(truth, predicted, strict=True) if truth.ndim == 3 else [(truth, predicted)]
    sums = np.sum([seg_sums(*frame) for frame in frames], axis=0)
    return float(sums[0] / sums[1]) if sums[1] else float("nan")
