"""Intervals over images: the bootstrap's own definition, exact sums, known distributions."""

import math

import numpy as np
import pytest

from segjax.evaluation.bootstrap import percentile_intervals, resampled_counts, weighted_sums


def test_each_resample_draws_as_many_images_as_there_are_and_each_image_equally_often():
    drawn = resampled_counts(7, 4000)
    assert drawn.shape == (4000, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert np.abs(drawn.mean(axis=0) - 1).max() < 0.06  # the deviation of a mean is 0.015
    assert (drawn == resampled_counts(7, 4000)).all()
    assert not (drawn == resampled_counts(7, 4000, seed=1)).all()


@pytest.mark.parametrize(
    "counts",
    [
        np.arange(24, dtype=np.uint8).reshape(4, 3, 2),
        np.array([[2**50 + 1], [3], [2**50], [1]]),
        np.array([-1, 2, -3, 4], np.int64),
        np.array([0.5, 1.25, -2.0, 8.0]),
    ],
)
def test_sums_are_those_of_the_images_repeated_exactly(counts):
    drawn = resampled_counts(4, 20)
    sums = weighted_sums(drawn, counts)
    for weights, total in zip(drawn, sums, strict=True):
        repeated = counts[np.repeat(np.arange(4), weights)]
        wide = repeated.astype(np.int64) if counts.dtype.kind != "f" else repeated
        np.testing.assert_array_equal(total, wide.sum(axis=0))


def test_an_interval_holds_the_middle_95_per_cent_and_leaves_undefined_scores_out():
    rows = [{"a": float(k), "b": math.nan, "c": 7, "d": [1.0]} for k in range(201)]
    rows.append({"a": math.nan, "b": math.nan, "c": 7, "d": [1.0]})
    assert percentile_intervals(rows) == {"a": pytest.approx([5.0, 195.0])}
    assert percentile_intervals([]) == {}
