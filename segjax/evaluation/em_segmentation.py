"""The errors of the ISBI 2012 challenge on electron-microscopy stacks, and its scores of 2015.

The truth maps cell interiors (1) and membranes (0). Predictions are probabilities of cell interior;
their segments are the 4-connected components of the pixels above a threshold. As in the challenge,
every error is taken at the threshold that is best for it over the whole stack.

Source: Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 2015. Where it leaves a choice, we follow the challenge's
published program (trainableSegmentation.metrics of Fiji; we took facts, no code).
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from segjax.evaluation.confusion_matrix import contingency_table
from segjax.evaluation.warping import (
    checked_maps,
    connected_cells,
    split_merge_counts,
    warp_truth,
)

# The challenge's ten thresholds.
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def pixel_error(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Computes the pixel error: the mean squared difference of truth and prediction.

    For a binary prediction it is the share of pixels that disagree.

    Args:
      truth: bool or 0/1, [height, width].
      prediction: bool, 0/1 or probabilities of cell interior, [height, width].
    """
    truth, prediction = checked_maps(truth, prediction)
    return float(np.mean((truth - prediction.astype(np.float64)) ** 2))


def rand_error(truth: np.ndarray, prediction: np.ndarray, *, threshold: float = 0.5) -> float:
    """Computes the Rand error of 2012: 1 − F-score of the foreground-restricted Rand index.

    Restricted means that true membrane pixels are left out. Pixels that are membrane only in the
    prediction stay in, each as a segment of its own. The error is 1 − V^Rand; see `rand_scores`.

    Args:
      truth: bool or 0/1, [height, width].
      prediction: bool, 0/1 or probabilities of cell interior; cells are where it exceeds
        `threshold`.

    Returns:
      A number in [0, 1); NaN if the truth has no cells.
    """
    truth, prediction = checked_maps(truth, prediction)
    counts = rand_counts(connected_cells(truth), connected_cells(prediction > threshold))
    return 1 - rand_scores(counts)["v_rand"]


def rand_counts(truth_segments: np.ndarray, predicted_segments: np.ndarray) -> np.ndarray:
    """Counts ordered pairs of true cell pixels, including each with itself, int64 [3].

    Args:
      truth_segments, predicted_segments: segment ids [height, width], 0 is membrane.

    Returns:
      Pairs that lie in one segment of both, of the truth, and of the prediction: Σ p_ij², Σ t_j²
      and Σ s_i² of the paper, not yet divided by n². Sum them over slices before taking scores.
    """
    sizes = _segment_sizes(truth_segments, predicted_segments)
    return np.array([np.sum(size**2) for size in sizes], np.int64)


def rand_scores(counts: np.ndarray) -> dict[str, float]:
    """Computes the foreground-restricted Rand score V^Rand and its parts from `rand_counts`.

    `v_rand_split` is the share of true pairs that the prediction keeps together, `v_rand_merge`
    the share of predicted pairs that belong together, and `v_rand` their harmonic mean (α = 0.5).
    All are 1 for a perfect segmentation, and NaN if the truth has no cells.
    """
    joint, truth, predicted = (int(count) for count in counts)
    if not truth:
        return dict.fromkeys(("v_rand", "v_rand_split", "v_rand_merge"), float("nan"))
    return {
        "v_rand": 2 * joint / (truth + predicted),
        "v_rand_split": joint / truth,
        "v_rand_merge": joint / predicted,
    }


def information_scores(
    truth_segments: np.ndarray, predicted_segments: np.ndarray
) -> dict[str, float]:
    """Computes the foreground-restricted information score V^Info of a slice and its parts.

    S is the predicted and T the true segment of a random true cell pixel, and I their mutual
    information. Then `v_info_split` = I/H(S), `v_info_merge` = I/H(T) and
    `v_info` = 2I/(H(S) + H(T)). A part whose entropy is 0 is 1, because there is nothing to split
    or merge. All are NaN if the truth has no cells.

    Args:
      truth_segments, predicted_segments: segment ids [height, width], 0 is membrane.
    """
    sizes = _segment_sizes(truth_segments, predicted_segments)
    if not sizes[0].size:
        return dict.fromkeys(("v_info", "v_info_split", "v_info_merge"), float("nan"))
    joint, truth, predicted = (_entropy(size) for size in sizes)
    mutual = max(0.0, truth + predicted - joint)
    return {
        "v_info": 2 * mutual / (truth + predicted) if truth + predicted else 1.0,
        "v_info_split": mutual / predicted if predicted else 1.0,
        "v_info_merge": mutual / truth if truth else 1.0,
    }


def thin_borders(segments: np.ndarray) -> np.ndarray:
    """Grows segments [height, width] until the membranes between them are one pixel wide.

    The scores of 2015 are taken after this watershed (the paper's "border thinning"); otherwise
    they would depend on how wide a method draws membranes.
    """
    # cv2.watershed grows markers evenly over a constant image. It treats the outermost pixels as
    # border, hence the padding.
    grown = np.pad(segments, 1).astype(np.int32)
    cv2.watershed(np.zeros((*grown.shape, 3), np.uint8), grown)
    return np.maximum(grown[1:-1, 1:-1], 0)


def em_counts(
    truth: np.ndarray, prediction: np.ndarray, *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, np.ndarray]:
    """Counts what `em_errors` needs of one slice at each threshold; sum the counts over slices.

    Args:
      truth: bool or 0/1, [height, width].
      prediction: probabilities of cell interior, [height, width].

    Returns:
      `em_pixels`: int64, the number of pixels.
      `em_slices`: int64, 1 if the slice has cells, else 0.
      `em_confusion`: int64 [T, 3], true positive, false positive and false negative cell pixels.
      `em_rand`: int64 [T, 3]; see `rand_counts`.
      `em_rand_thinned`: the same after border thinning.
      `em_warping`: int64 [T, 3], pixels that disagree after warping, that split, and that merge.
      `em_information_thinned`: float64 [T], V^Info after border thinning.

    Raises:
      ValueError: shapes differ or are not 2-D, truth is not binary, a prediction is outside
        [0, 1], or there is no threshold.
    """
    if not len(thresholds):
        raise ValueError("thresholds must hold at least one number")
    truth, prediction = checked_maps(truth, prediction)
    truth_segments = connected_cells(truth)
    rows = []
    for threshold in thresholds:
        cells = prediction > threshold
        segments = connected_cells(cells)
        thinned = thin_borders(segments)
        warped = warp_truth(truth, prediction, threshold=threshold)
        information = information_scores(truth_segments, thinned)["v_info"]
        rows.append(
            {
                "em_confusion": [
                    np.sum(truth & cells),
                    np.sum(cells > truth),
                    np.sum(cells < truth),
                ],
                "em_rand": rand_counts(truth_segments, segments),
                "em_rand_thinned": rand_counts(truth_segments, thinned),
                "em_warping": [np.sum(warped != cells), *split_merge_counts(warped, cells)],
                # A slice without cells does not count in em_slices, and must not add NaN.
                "em_information_thinned": information if truth.any() else 0.0,
            }
        )
    counts = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    totals = {"em_pixels": truth.size, "em_slices": truth.any()}
    return counts | {name: np.array(total, np.int64) for name, total in totals.items()}


def em_errors(
    counts: Mapping[str, np.ndarray], *, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """Computes each error at its best threshold from the sum of `em_counts` over slices.

    Returns:
      `pixel_error`: lowest share of pixels that disagree.
      `pixel_f_error`: 1 − highest F-score of the class cell. The challenge's page names both pixel
        errors; its program reports this one.
      `rand_error`: 1 − V^Rand.
      `warping_error`: share of pixels that disagree after warping.
      `split_merge_error`: share of pixels that split or merge cells, the warping error of the
        challenge's table.
      `v_rand_thinned`: V^Rand after border thinning.
      `v_info_thinned`: V^Info after border thinning, the mean over slices.
      `<name>_threshold`: for each of these, the first threshold that attains it.
      Undefined values and thresholds are NaN, as in a stack without cells.
    """
    correct, false_cells, missed_cells = np.moveaxis(counts["em_confusion"], -1, 0)
    wrong = false_cells + missed_cells
    warped_wrong, splits, merges = np.moveaxis(counts["em_warping"], -1, 0)
    pixels = counts["em_pixels"]
    rand, thinned = (
        np.array([rand_scores(row)["v_rand"] for row in counts[name]])
        for name in ("em_rand", "em_rand_thinned")
    )
    with np.errstate(invalid="ignore"):
        errors = {
            "pixel_error": wrong / pixels,
            "pixel_f_error": wrong / (2 * correct + wrong),
            "rand_error": 1 - rand,
            "warping_error": warped_wrong / pixels,
            "split_merge_error": (splits + merges) / pixels,
        }
        highest = {
            "v_rand_thinned": thinned,
            "v_info_thinned": counts["em_information_thinned"] / counts["em_slices"],
        }
    result = {}
    for sign, scores in ((1, errors), (-1, highest)):
        for name, values in scores.items():
            defined = np.flatnonzero(~np.isnan(values))
            best = defined[np.argmin(sign * values[defined])] if defined.size else None
            result[name] = float("nan") if best is None else float(values[best])
            result[f"{name}_threshold"] = float("nan") if best is None else float(thresholds[best])
    return result


def _segment_sizes(
    truth_segments: np.ndarray, predicted_segments: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the true cell pixels of each joint, true and predicted segment, int64 arrays.

    True cell pixels that are predicted as membrane are predicted segments of one pixel.
    """
    in_cell = truth_segments > 0
    table = contingency_table(truth_segments[in_cell], predicted_segments[in_cell])
    truth, predicted = table.sum(1), table.sum(0)
    ones = np.ones(predicted[0], np.int64)
    joint = np.concatenate([table.data[table.indices > 0], ones])
    predicted = np.concatenate([predicted[1:], ones])
    return joint, truth[truth > 0], predicted[predicted > 0]


def _entropy(sizes: np.ndarray) -> float:
    """Computes the entropy, in nats, of a random pixel's segment."""
    shares = sizes / sizes.sum()
    return float(-(shares * np.log(shares)).sum())
