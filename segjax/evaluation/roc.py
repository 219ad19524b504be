"""Area under the ROC curve and average precision, exact or from histograms that can be summed."""

import numpy as np
from scipy.special import logit

# `roc_counts` ties all scores beyond these log-odds (1e-14 from 0 and from 1). Near 1, float32
# reaches only 16.6.
_LARGEST_LOGIT = 32.0


def roc_auc(positive: np.ndarray, scores: np.ndarray, *, mask: np.ndarray | None = None) -> float:
    """Computes the exact area under the ROC curve.

    This is the Mann–Whitney statistic (Hanley and McNeil, 1982): the probability that a positive
    pixel scores above a negative one, with ties counting one half.

    Args:
      positive: bool of any shape, the truth.
      scores: floats of the same shape, any range; higher means positive.
      mask: bool of the same shape; the pixels to use, for instance a field of view.

    Returns:
      A number in [0, 1]; NaN if only one class occurs.

    Raises:
      ValueError: shapes differ, positive or mask is not bool, or a score is NaN.
    """
    positive, scores = _selected(positive, scores, mask)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    values, bins = np.unique(scores, return_inverse=True)
    return roc_auc_of_counts(_count(positive, bins.ravel(), len(values)))


def roc_counts(
    positive: np.ndarray,
    scores: np.ndarray,
    *,
    mask: np.ndarray | None = None,
    bins: int = 2**14,
) -> np.ndarray:
    """Counts negatives and positives in bins of a probability's log-odds, int64 [2, bins].

    Counts of images add up to those of a data set. Scores in one bin are ties, which bounds the
    error of `roc_auc_of_counts` by half the share of (positive, negative) pairs that fall into one
    bin. Bins are equal in log-odds because a confident network puts most pixels so close to 0 and 1
    that equal bins of the probability would tie them.

    Args:
      positive, scores, mask: as for `roc_auc`, but scores are probabilities in [0, 1].

    Raises:
      ValueError: as for `roc_auc`, or a score is outside [0, 1].
    """
    positive, scores = _selected(positive, scores, mask)
    check_probabilities(scores, "scores")
    log_odds = logit(np.clip(scores.astype(np.float64), 0, 1))
    share = np.clip(log_odds / _LARGEST_LOGIT, -1, 1) / 2 + 0.5
    indices = (share * bins).astype(np.int64)
    return _count(positive, np.minimum(indices, bins - 1), bins)


def roc_auc_of_counts(counts: np.ndarray) -> float:
    """Computes the area under the ROC curve from counts [2, bins] in increasing order of score.

    Returns:
      A number in [0, 1]; NaN if only one class occurs.
    """
    negatives, positives = np.asarray(counts, np.float64)
    pairs = positives.sum() * negatives.sum()
    if not pairs:
        return float("nan")
    negatives_below = np.cumsum(negatives) - negatives
    return float((positives * (negatives_below + negatives / 2)).sum() / pairs)


def average_precision_of_counts(counts: np.ndarray) -> float:
    """Computes average precision from counts [2, bins] in increasing order of score.

    It sums precision · (increase of recall) over falling thresholds, without interpolation.

    Returns:
      A number in [0, 1]; NaN if there is no positive or no negative.
    """
    negatives, positives = np.asarray(counts, np.float64)[:, ::-1]
    if not (positives.sum() and negatives.sum()):
        return float("nan")
    true_positives = np.cumsum(positives)
    predicted = true_positives + np.cumsum(negatives)
    precision = true_positives / np.maximum(predicted, 1)
    return float((precision * positives).sum() / positives.sum())


def check_probabilities(values: np.ndarray, name: str) -> None:
    """Raises a ValueError if a value is NaN or outside [0, 1].

    A deviation of 1e-5 is allowed, because averages of probabilities are rounded.
    """
    outside = ~((values >= -1e-5) & (values <= 1 + 1e-5))
    if outside.any():
        raise ValueError(f"{name} must lie in [0, 1], found {values[outside][0]}")


def _selected(positive, scores, mask) -> tuple[np.ndarray, np.ndarray]:
    """Checks the inputs and returns the pixels in `mask`, flat."""
    positive, scores = np.asarray(positive), np.asarray(scores)
    mask = np.ones(positive.shape, bool) if mask is None else np.asarray(mask)
    for name, array in (("positive", positive), ("mask", mask)):
        if array.dtype != bool:
            raise ValueError(f"{name} must be bool, not {array.dtype}")
    if not positive.shape == scores.shape == mask.shape:
        raise ValueError(
            f"positive, scores and mask differ in shape: {positive.shape}, {scores.shape} and "
            f"{mask.shape}"
        )
    return positive[mask], scores[mask]


def _count(positive: np.ndarray, indices: np.ndarray, bins: int) -> np.ndarray:
    """Counts negatives and positives at each index, int64 [2, bins]."""
    flat = positive.astype(np.int64) * bins + indices
    return np.bincount(flat, minlength=2 * bins).astype(np.int64).reshape(2, bins)
