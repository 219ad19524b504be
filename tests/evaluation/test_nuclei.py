"""Scores of nuclei, against loops over objects and cases worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.evaluation.nuclei import (
    example_mean_precision,
    example_panoptic_quality,
    instance_map,
    mean_precision,
)


def slow_mean_precision(truth, predicted):
    """The definition, threshold by threshold and object by object."""
    true_ids, found_ids = (sorted(set(np.unique(a)) - {0}) for a in (truth, predicted))
    precisions = []
    for twentieths in range(10, 20):
        hits = 0
        for found in found_ids:
            for true in true_ids:
                both = ((truth == true) & (predicted == found)).sum()
                either = ((truth == true) | (predicted == found)).sum()
                hits += int(20 * both > twentieths * either)
        precisions.append(hits / (len(true_ids) + len(found_ids) - hits))
    return np.mean(precisions)


def random_instances(rng, count=12, size=(40, 50)):
    instances = np.zeros(size, np.int32)
    for number in 7 * (1 + rng.permutation(count)):
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        instances[y : y + rng.integers(4, 12), x : x + rng.integers(4, 12)] = number
    return instances


@pytest.mark.parametrize("seed", range(4))
def test_mean_precision_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    truth = random_instances(rng)
    predicted = np.roll(truth, (seed % 2, 1), (0, 1)) * 3
    predicted[:, -8:] = random_instances(rng)[:, -8:]
    expected = slow_mean_precision(truth, predicted)
    assert 0 < expected < 1
    assert mean_precision(truth, predicted) == pytest.approx(expected, rel=1e-12)


def test_an_overlap_at_a_threshold_is_no_hit():
    truth, predicted = np.zeros((2, 1, 20), np.int32)
    truth[0, :10], predicted[0, :5] = 1, 1  # IoU 0.5
    assert mean_precision(truth, predicted) == 0
    predicted[0, :7] = 1  # 0.7: a hit at 0.5, 0.55, 0.6 and 0.65
    assert mean_precision(truth, predicted) == pytest.approx(0.4)


def test_a_perfect_prediction_scores_one_and_an_empty_one_zero():
    truth = random_instances(np.random.default_rng(0))
    assert mean_precision(truth, 5 * truth) == 1
    assert mean_precision(truth, 0 * truth) == 0
    assert mean_precision(0 * truth, truth) == 0
    assert np.isnan(mean_precision(0 * truth, 0 * truth))


def test_a_pixel_belongs_to_the_mask_with_the_highest_score():
    masks = np.zeros((4, 6, 8), bool)
    masks[0, :, :4], masks[1, 2:4, 2:6], masks[2, 3:, 3:] = True, True, True  # 3 stays empty
    scores = np.array([0.5, 0.9, 0.5, 0.8])
    result = instance_map([rle.encode(mask) for mask in masks], scores, (6, 8))
    expected = np.zeros((6, 8), np.int32)
    for index in (2, 0, 3, 1):  # at equal scores, the earlier mask is drawn over the later one
        expected[masks[index]] = index + 1
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.int32
    assert not instance_map([], np.zeros(0), (6, 8)).any()


def test_masks_of_another_size_or_without_a_score_are_refused():
    mask = rle.encode(np.ones((4, 4), bool))
    with pytest.raises(ValueError, match=r"mask 0 is for an image of \[4, 4\], not of \[6, 8\]"):
        instance_map([mask], np.ones(1), (6, 8))
    with pytest.raises(ValueError, match="a score for each of 1 masks, found"):
        instance_map([mask], np.ones(2), (4, 4))


def test_detections_of_low_score_are_left_out():
    truth = np.zeros((10, 12), np.int32)
    truth[1:5, 2:6], truth[6:9, 7:12] = 1, 2
    windows = [
        SimpleNamespace(top=1, left=2, pixels=np.ones((4, 4), bool)),
        SimpleNamespace(top=6, left=7, pixels=np.ones((3, 5), bool)),
    ]
    example = {"image": np.zeros((10, 12, 3), np.uint8), "masks": windows}
    masks = [rle.encode(truth == 1), rle.encode(truth == 2), rle.encode(truth == 0)]
    prediction = {"scores": np.array([0.9, 0.5, 0.4], np.float32), "masks": masks}
    assert example_mean_precision(example, prediction) == 1
    assert example_mean_precision(example, prediction, minimum_score=0.6) == 0.5
    assert example_mean_precision(example, prediction, minimum_score=0.3) == pytest.approx(2 / 3)
    assert example_panoptic_quality(example, prediction) == 1
    # One of two objects found, then both with a false positive: TP / (TP + FP / 2 + FN / 2).
    assert example_panoptic_quality(example, prediction, minimum_score=0.6) == pytest.approx(2 / 3)
    assert example_panoptic_quality(example, prediction, minimum_score=0.3) == pytest.approx(0.8)
    nothing = {"scores": np.zeros(0), "masks": []}
    assert example_panoptic_quality(example, nothing) == 0
    assert np.isnan(example_panoptic_quality({**example, "masks": []}, nothing))
