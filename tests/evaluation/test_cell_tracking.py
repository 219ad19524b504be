import numpy as np
import pytest

from segjax.evaluation.cell_tracking import cell_tracking_seg, seg_sums


def slow_jaccards(truth, predicted):
    """The Jaccard index of each true object, by trying every predicted object."""
    jaccards = []
    for truth_id in np.unique(truth[truth > 0]):
        reference = truth == truth_id
        best = 0.0
        for predicted_id in np.unique(predicted[predicted > 0]):
            segment = predicted == predicted_id
            common = (reference & segment).sum()
            if common > 0.5 * reference.sum():
                best = common / (reference | segment).sum()
        jaccards.append(best)
    return jaccards


def random_instances(seed):
    """Blocks, shifted and with noise, so that some match and some do not."""
    rng = np.random.default_rng(seed)
    truth = np.kron(np.arange(16).reshape(4, 4) % 11, np.ones((5, 5), int))
    predicted = np.roll(truth, rng.integers(0, 2, 2), axis=(0, 1)) * 7
    predicted[rng.random(truth.shape) < 0.25] = 3
    return truth, predicted


@pytest.mark.parametrize("seed", range(5))
def test_sums_agree_with_trying_all_pairs(seed):
    truth, predicted = random_instances(seed)
    expected = slow_jaccards(truth, predicted)
    total, objects = seg_sums(truth, predicted)
    assert total == pytest.approx(sum(expected))
    assert objects == len(expected)
    assert 0 < total < objects


def test_exactly_half_is_no_match_and_one_pixel_more_is():
    truth = np.array([[1, 1, 1, 1]])
    assert cell_tracking_seg(truth, np.array([[5, 5, 0, 0]])) == 0
    assert cell_tracking_seg(truth, np.array([[5, 5, 5, 0]])) == pytest.approx(3 / 4)


def test_one_predicted_object_may_match_several_true_ones():
    # One object, twice the size of each half, covers both halves.
    assert cell_tracking_seg(np.array([[1, 1, 2, 2]]), np.array([[9, 9, 9, 9]])) == 0.5


def test_objects_that_match_nothing_cost_nothing():
    truth = np.array([[1, 1, 0, 0]])
    assert cell_tracking_seg(truth, np.array([[4, 4, 8, 8]])) == 1


def test_mean_is_over_objects_and_not_over_frames():
    truth = np.array([[[1, 0, 0, 0]], [[1, 2, 3, 0]]])
    predicted = np.array([[[1, 0, 0, 0]], [[0, 0, 0, 0]]])
    assert cell_tracking_seg(truth, predicted) == pytest.approx(1 / 4)


def test_same_id_in_two_frames_is_two_objects():
    truth = np.array([[[1, 1]], [[1, 1]]])
    predicted = np.array([[[1, 1]], [[2, 0]]])
    assert cell_tracking_seg(truth, predicted) == pytest.approx((1 + 0) / 2)


def test_ids_need_not_agree_nor_be_consecutive():
    truth = np.array([[0, 70_000, 70_000, 2]], np.int32)
    predicted = np.array([[0, 1, 1, 90_000]], np.int32)
    assert seg_sums(truth, predicted) == (2.0, 2)


def test_truth_without_objects_is_nan_and_missing_objects_are_zero():
    empty, full = np.zeros((3, 3), int), np.ones((3, 3), int)
    assert seg_sums(empty, full) == (0.0, 0)
    assert np.isnan(cell_tracking_seg(empty, full))
    assert np.isnan(cell_tracking_seg(empty, empty))
    assert cell_tracking_seg(full, empty) == 0
    assert cell_tracking_seg(full, full) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"not \(2, 2\) and \(2, 3\)"):
        cell_tracking_seg(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="predicted ids must be integers, not float64"):
        cell_tracking_seg(np.zeros((2, 2), int), np.zeros((2, 2)))
