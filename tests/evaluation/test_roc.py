import numpy as np
import pytest

from segjax.evaluation.roc import (
    average_precision_of_counts,
    roc_auc,
    roc_auc_of_counts,
    roc_counts,
)


def pairwise_auc(positive, scores):
    """Counts (positive, negative) pairs in the right order; ties count one half."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return ((above > 0).sum() + 0.5 * (above == 0).sum()) / above.size


def pixels(seed, size=400):
    rng = np.random.default_rng(seed)
    positive = rng.random(size) < 0.3
    scores = rng.normal(np.where(positive, 1.5, -1.5), 3).astype(np.float32)
    return positive, 1 / (1 + np.exp(-scores))


@pytest.mark.parametrize("decimals", [1, 7])
def test_exact_auc_counts_pairs_with_and_without_ties(decimals):
    positive, scores = pixels(0)
    scores = scores.round(decimals)
    assert roc_auc(positive, scores) == pytest.approx(pairwise_auc(positive, scores), abs=1e-12)


def test_hand_computed_auc_and_average_precision():
    # By falling score: positive, negative, positive, negative.
    positive, scores = np.array([True, False, True, False]), np.array([0.9, 0.7, 0.5, 0.1])
    counts = roc_counts(positive, scores)
    assert roc_auc(positive, scores) == roc_auc_of_counts(counts) == 3 / 4
    assert average_precision_of_counts(counts) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_constant_scores_are_worth_one_half():
    positive = np.array([True, False, False])
    counts = roc_counts(positive, np.full(3, 0.4))
    assert roc_auc(positive, np.full(3, 0.4)) == roc_auc_of_counts(counts) == 0.5
    assert average_precision_of_counts(counts) == pytest.approx(1 / 3)


def test_histogram_comes_close_to_the_exact_area():
    positive, scores = pixels(1, size=20_000)
    area = roc_auc_of_counts(roc_counts(positive, scores))
    assert area == pytest.approx(roc_auc(positive, scores), abs=1e-5)


def test_histogram_tells_confident_scores_apart():
    positive, scores = pixels(2, size=20_000)
    confident = scores**2 * 1e-6  # in the same order
    area = roc_auc_of_counts(roc_counts(positive, confident))
    assert area == pytest.approx(roc_auc(positive, scores), abs=1e-4)


def test_histograms_of_images_sum_to_that_of_the_set():
    positive, scores = pixels(3)
    parts = sum(
        roc_counts(part, part_scores)
        for part, part_scores in zip(np.split(positive, 4), np.split(scores, 4), strict=True)
    )
    np.testing.assert_array_equal(parts, roc_counts(positive, scores))
    assert parts.dtype == np.int64
    assert parts.sum(1).tolist() == [(~positive).sum(), positive.sum()]


def test_masked_pixels_do_not_count():
    positive, scores = pixels(4)
    mask = np.random.default_rng(5).random(positive.shape) < 0.5
    assert roc_auc(positive, scores, mask=mask) == roc_auc(positive[mask], scores[mask])
    np.testing.assert_array_equal(
        roc_counts(positive, scores, mask=mask), roc_counts(positive[mask], scores[mask])
    )


def test_images_of_any_rank_and_the_ends_of_the_range():
    positive = np.array([[False, True], [False, True]])
    scores = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    assert roc_auc(positive, scores) == roc_auc_of_counts(roc_counts(positive, scores)) == 1
    assert roc_auc(~positive, scores) == 0


def test_probabilities_rounded_out_of_the_range_count_as_its_ends():
    positive = np.array([False, True])
    rounded = roc_counts(positive, np.array([-1e-7, 1 + 1e-7]))
    np.testing.assert_array_equal(rounded, roc_counts(positive, np.array([0.0, 1.0])))


@pytest.mark.parametrize("positive", [np.zeros(3, bool), np.ones(3, bool), np.zeros(0, bool)])
def test_one_class_alone_is_nan(positive):
    scores = np.full(positive.shape, 0.5)
    counts = roc_counts(positive, scores)
    assert np.isnan(roc_auc(positive, scores))
    assert np.isnan(roc_auc_of_counts(counts))
    assert np.isnan(average_precision_of_counts(counts))


def test_counts_beyond_32_bits_do_not_overflow():
    counts = np.array([[2**40, 2**40], [0, 2**40]])
    assert roc_auc_of_counts(counts) == 3 / 4
    assert average_precision_of_counts(counts) == 1 / 2


def test_bad_input_is_named():
    positive, scores = np.array([True, False]), np.array([0.5, 0.5])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], found 1\.5"):
        roc_counts(positive, np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], found nan"):
        roc_counts(positive, np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="NaN"):
        roc_auc(positive, np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="positive must be bool, not int64"):
        roc_auc(np.array([1, 0]), scores)
    with pytest.raises(ValueError, match="mask must be bool, not int64"):
        roc_auc(positive, scores, mask=np.array([1, 0]))
    with pytest.raises(ValueError, match=r"differ in shape: \(2,\), \(3,\)"):
        roc_auc(positive, np.zeros(3))
