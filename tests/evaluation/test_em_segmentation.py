import cv2
import numpy as np
import pytest

from segjax.evaluation.em_segmentation import (
    em_counts,
    em_errors,
    information_scores,
    pixel_error,
    rand_counts,
    rand_error,
    rand_scores,
    thin_borders,
)
from segjax.evaluation.warping import connected_cells, split_merge_counts, warp_truth, warping_error


def segmentations(seed, shape=(7, 8)):
    """Two random segmentations with membranes (0) in different places."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, shape), rng.integers(0, 3, shape) * 5


def blocks(seed, shape=(3, 4)):
    """A map of square cells, and noisy probabilities of it."""
    rng = np.random.default_rng(seed)
    cells = np.tile(np.pad(np.ones((6, 6), bool), ((1, 0), (1, 0))), shape)
    noise = cv2.GaussianBlur(rng.normal(size=cells.shape), (0, 0), 1)
    return cells, np.clip(cells * 0.6 + 0.2 + 0.6 * noise, 0, 1).astype(np.float32)


def stack_errors(slices, thresholds=(0.5,)):
    counts = [em_counts(*example, thresholds=thresholds) for example in slices]
    total = {name: sum(part[name] for part in counts) for name in counts[0]}
    return em_errors(total, thresholds=thresholds)


def slow_pairs(truth, predicted):
    """Visits all ordered pairs of true cell pixels."""
    pixels = np.argwhere(truth > 0)
    joint = in_truth = in_prediction = 0
    for first in map(tuple, pixels):
        for second in map(tuple, pixels):
            together = truth[first] == truth[second]
            same = predicted[first] == predicted[second] > 0 or first == second
            joint += together and same
            in_truth += together
            in_prediction += same
    return [joint, in_truth, in_prediction]


@pytest.mark.parametrize("seed", range(4))
def test_rand_counts_agree_with_visiting_all_pairs(seed):
    truth, predicted = segmentations(seed)
    counts = rand_counts(truth, predicted)
    assert counts.tolist() == slow_pairs(truth, predicted)
    assert counts.dtype == np.int64


def test_hand_computed_rand_scores():
    # Four cell pixels in two segments; the prediction joins all but one, which is membrane.
    truth, predicted = np.array([[1, 1, 2, 2, 0]]), np.array([[7, 7, 7, 0, 7]])
    assert rand_counts(truth, predicted).tolist() == [4 + 1 + 1, 4 + 4, 9 + 1]
    scores = rand_scores(rand_counts(truth, predicted))
    assert scores["v_rand_split"] == 6 / 8
    assert scores["v_rand_merge"] == 6 / 10
    assert scores["v_rand"] == pytest.approx(2 / (8 / 6 + 10 / 6))


def test_rand_error_is_one_minus_the_f_score_of_the_thresholded_map():
    truth = np.array([[1, 1, 0, 1, 1]])
    prediction = np.array([[0.9, 0.8, 0.6, 0.9, 0.3]])
    assert rand_error(truth, prediction) == pytest.approx(1 - 2 * 6 / (8 + 10))
    assert rand_error(truth, prediction, threshold=0.7) == pytest.approx(1 - 2 * 6 / (8 + 6))


def test_cells_are_4_connected():
    diagonal = ~np.eye(4, dtype=bool)
    assert connected_cells(diagonal).max() == 2


def test_merges_and_splits_lower_their_own_part_of_the_scores():
    truth = np.kron([[1, 2], [3, 4]], np.ones((3, 3), int))
    merged, split = np.minimum(truth, 3), truth + 4 * (np.indices(truth.shape)[0] % 3 == 0)
    for scores in (
        lambda predicted: rand_scores(rand_counts(truth, predicted)),
        lambda predicted: information_scores(truth, predicted),
    ):
        names = [name.rsplit("_", 1)[-1] for name in scores(truth)]
        assert names[1:] == ["split", "merge"]
        _, by_split, by_merge = scores(merged).values()
        assert by_split == pytest.approx(1)
        assert by_merge < 0.9
        _, by_split, by_merge = scores(split).values()
        assert by_split < 0.9
        assert by_merge == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_information_scores_agree_with_the_joint_distribution(seed):
    truth, predicted = segmentations(seed)
    # Predicted membrane pixels become segments of their own.
    predicted = np.where(predicted > 0, predicted, 100 + np.arange(truth.size).reshape(truth.shape))
    pairs = list(zip(truth[truth > 0], predicted[truth > 0], strict=True))
    share = {pair: pairs.count(pair) / len(pairs) for pair in pairs}
    of_truth, of_predicted = {}, {}
    for (true, found), p in share.items():
        of_truth[true] = of_truth.get(true, 0) + p
        of_predicted[found] = of_predicted.get(found, 0) + p
    mutual = sum(
        p * np.log(p / (of_truth[true] * of_predicted[found])) for (true, found), p in share.items()
    )
    h_truth, h_predicted = (
        -sum(p * np.log(p) for p in d.values()) for d in (of_truth, of_predicted)
    )
    scores = information_scores(*segmentations(seed))
    assert scores["v_info"] == pytest.approx(2 * mutual / (h_truth + h_predicted))
    assert scores["v_info_split"] == pytest.approx(mutual / h_predicted)
    assert scores["v_info_merge"] == pytest.approx(mutual / h_truth)


def test_perfect_segmentation_has_scores_one_and_errors_zero():
    cells, _ = blocks(0)
    segments = connected_cells(cells)
    assert rand_error(cells, cells) == pixel_error(cells, cells) == warping_error(cells, cells) == 0
    assert set(rand_scores(rand_counts(segments, segments)).values()) == {1}
    np.testing.assert_allclose(list(information_scores(segments, segments).values()), 1)


def test_one_cell_found_whole_is_perfect_and_found_in_parts_is_not():
    one, two = np.ones((2, 4), int), np.array([[1, 1, 2, 2]] * 2)
    assert information_scores(one, one) == dict.fromkeys(information_scores(one, one), 1)
    parts = {"v_info": 0, "v_info_split": 0, "v_info_merge": 1}
    assert information_scores(one, two) == pytest.approx(parts)
    parts = {"v_info": 0, "v_info_split": 1, "v_info_merge": 0}
    assert information_scores(two, one) == pytest.approx(parts)


def test_truth_without_cells_is_nan_and_prediction_without_cells_is_not():
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert np.isnan(rand_error(empty, full))
    assert np.isnan(list(rand_scores(rand_counts(empty, full)).values())).all()
    assert np.isnan(list(information_scores(empty, full).values())).all()
    # Nine pixels, each a segment of its own: 9 pairs of 81.
    assert rand_error(full, empty) == pytest.approx(1 - 2 * 9 / (81 + 9))


def test_pair_counts_beyond_32_bits_do_not_overflow():
    segments = np.ones((300, 300), np.int32)
    assert rand_counts(segments, segments).tolist() == [90_000**2] * 3


def test_pixel_error_is_the_share_of_wrong_pixels_or_the_squared_difference():
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    assert pixel_error(truth, np.array([[1, 0, 0, 0]], bool)) == 1 / 4
    assert pixel_error(truth, np.array([[0.5, 1, 0, 0.1]])) == pytest.approx((0.25 + 0.01) / 4)


def test_thinned_membrane_is_one_pixel_wide_in_the_middle():
    segments = np.zeros((6, 11), np.int32)
    segments[:, :3], segments[:, 8:] = 4, 9
    expected = np.repeat([[4] * 5 + [0] + [9] * 5], 6, axis=0)
    np.testing.assert_array_equal(thin_borders(segments), expected)


@pytest.mark.parametrize("seed", range(3))
def test_thinning_grows_segments_but_keeps_them_apart(seed):
    segments = connected_cells(blocks(seed)[1] > 0.6)
    thinned = thin_borders(segments)
    np.testing.assert_array_equal(thinned[segments > 0], segments[segments > 0])
    for first, second in ((thinned[1:], thinned[:-1]), (thinned[:, 1:], thinned[:, :-1])):
        assert not np.any((first != second) & (first > 0) & (second > 0))
    assert (thinned == 0).sum() < 0.6 * (segments == 0).sum()


def test_thinning_of_no_segment_and_of_one():
    assert not thin_borders(np.zeros((4, 5), np.int32)).any()
    one = np.zeros((4, 5), np.int32)
    one[2, 2] = 3
    assert (thin_borders(one) == 3).all()


def test_counts_of_a_slice_are_those_of_each_metric_alone():
    truth, prediction = blocks(1)
    counts = em_counts(truth.astype(np.uint8), prediction, thresholds=(0.3, 0.55))
    for row, threshold in enumerate((0.3, 0.55)):
        cells = prediction > threshold
        segments, thinned = connected_cells(cells), thin_borders(connected_cells(cells))
        warped = warp_truth(truth, prediction, threshold=threshold)
        true_segments = connected_cells(truth)
        expected = [(truth & cells).sum(), (~truth & cells).sum(), (truth & ~cells).sum()]
        assert counts["em_confusion"][row].tolist() == expected
        np.testing.assert_array_equal(counts["em_rand"][row], rand_counts(true_segments, segments))
        np.testing.assert_array_equal(
            counts["em_rand_thinned"][row], rand_counts(true_segments, thinned)
        )
        splits_and_merges = split_merge_counts(warped, cells)
        assert counts["em_warping"][row].tolist() == [(warped != cells).sum(), *splits_and_merges]
        information = information_scores(true_segments, thinned)["v_info"]
        assert counts["em_information_thinned"][row] == information
    assert counts["em_pixels"] == truth.size
    assert counts["em_slices"] == 1


def test_best_threshold_is_found_over_the_whole_stack_for_each_error():
    stack = [blocks(seed) for seed in range(3)]
    truths, predictions = map(np.stack, zip(*stack, strict=True))
    thresholds = (0.2, 0.4, 0.5, 0.6, 0.8)
    result = stack_errors(stack, thresholds)
    pairs = {
        t: sum(
            rand_counts(connected_cells(truth), connected_cells(prediction > t))
            for truth, prediction in stack
        )
        for t in thresholds
    }
    errors = {
        "pixel_error": {t: np.mean(truths != (predictions > t)) for t in thresholds},
        "rand_error": {t: 1 - rand_scores(pairs[t])["v_rand"] for t in thresholds},
        "warping_error": {
            t: np.mean([warping_error(*example, threshold=t) for example in stack])
            for t in thresholds
        },
    }
    for name, by_threshold in errors.items():
        best = min(by_threshold, key=by_threshold.get)
        assert result[name] == pytest.approx(by_threshold[best])
        assert result[f"{name}_threshold"] == best
    assert 0 < result["pixel_f_error"] < result["pixel_error"]
    assert 0 < result["split_merge_error"] <= result["warping_error"] < result["pixel_error"]
    assert result["v_rand_thinned"] > 1 - result["rand_error"]


def test_f_error_and_information_of_the_stack_by_hand():
    counts = {
        "em_confusion": np.array([[6, 2, 0], [4, 0, 2]]),
        "em_rand": np.array([[1, 1, 1], [1, 1, 1]]),
        "em_rand_thinned": np.array([[4, 8, 8], [6, 8, 8]]),
        "em_warping": np.array([[9, 1, 2], [5, 3, 1]]),
        "em_information_thinned": np.array([1.2, 0.8]),
        "em_pixels": np.int64(100),
        "em_slices": np.int64(2),
    }
    result = em_errors(counts, thresholds=(0.25, 0.75))
    assert result["pixel_error"] == 2 / 100
    assert result["pixel_f_error"] == pytest.approx(1 - 2 * 6 / (2 * 6 + 2))
    assert result["pixel_error_threshold"] == result["pixel_f_error_threshold"] == 0.25
    assert (result["warping_error"], result["warping_error_threshold"]) == (5 / 100, 0.75)
    assert (result["split_merge_error"], result["split_merge_error_threshold"]) == (3 / 100, 0.25)
    assert (result["v_rand_thinned"], result["v_rand_thinned_threshold"]) == (6 / 8, 0.75)
    assert (result["v_info_thinned"], result["v_info_thinned_threshold"]) == (0.6, 0.25)


def test_slice_without_cells_does_not_spoil_the_stack():
    truth, prediction = blocks(2)
    empty = np.zeros_like(truth)
    alone = stack_errors([(truth, prediction)])
    beside = stack_errors([(truth, prediction), (empty, empty)])
    for name in ("rand_error", "v_rand_thinned", "v_info_thinned"):
        assert beside[name] == alone[name]
    assert beside["pixel_error"] == pytest.approx(alone["pixel_error"] / 2)
    nothing = stack_errors([(empty, empty)])
    assert nothing["pixel_error"] == nothing["warping_error"] == 0
    for name in ("rand_error", "v_rand_thinned", "v_info_thinned", "rand_error_threshold"):
        assert np.isnan(nothing[name])


def test_bad_input_is_named():
    cells, prediction = blocks(3)
    with pytest.raises(ValueError, match=r"found 255; .* pass truth > 0"):
        em_counts(cells * np.uint8(255), prediction)
    with pytest.raises(ValueError, match=r"in \[0, 1\], found 2"):
        rand_error(cells, prediction + 2)
    with pytest.raises(ValueError, match="thresholds must hold"):
        em_counts(cells, prediction, thresholds=())


def test_real_slice_scores_perfectly_against_itself_and_poorly_when_shifted(real_data):
    cells = cv2.imread(str(real_data / "isbi2012" / "train-labels.tif"), cv2.IMREAD_UNCHANGED) > 0
    perfect = stack_errors([(cells, cells)])
    for name in ("pixel_error", "rand_error", "warping_error", "split_merge_error"):
        assert perfect[name] == 0
    # Border thinning only grows segments, so true cells lose no pixel.
    assert perfect["v_rand_thinned"] == perfect["v_info_thinned"] == pytest.approx(1)
    shifted = stack_errors([(cells, np.roll(cells, 20, axis=0))])
    assert shifted["rand_error"] > 0.3
    assert shifted["pixel_error"] > 0.2
