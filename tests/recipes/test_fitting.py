"""Defaults that follow from a data set and a machine."""

import numpy as np
import pytest

from segjax.recipes.fitting import (
    batch_size,
    class_weights,
    crop_side,
    describe_balance,
    number_of_steps,
)


def test_class_weights_keep_the_mean_over_pixels():
    counts = np.array([900.0, 100.0, 0.0])
    weights = class_weights(counts)
    assert weights[1] / weights[0] == pytest.approx(3)  # √9
    assert weights[2] == weights[1]
    assert np.sum(weights * counts) / np.sum(counts) == pytest.approx(1)
    text = describe_balance({0: 900, 1: 100, 255: 7}, ("background", "cell"))
    assert "cell, has 10 % of the labelled pixels" in text
    assert "--loss.class-weights 0.833 2.5" in text
    assert not describe_balance({0: 800, 1: 200}, ("background", "cell"))


def test_crops_fit_three_quarters_of_the_images():
    sizes = np.array([[100, 200], [150, 130], [120, 400], [300, 300], [90, 90]])
    assert crop_side(sizes, multiple=16, largest=384) == 96  # four of five are 100 or more
    assert crop_side(sizes, multiple=16, largest=65, extra=1) == 65
    assert crop_side(np.array([[5, 5]]), multiple=16, largest=384) == 16


def test_batches_fit_memory_and_examples():
    assert batch_size(1.0, 100) == 16  # four for each of the tests' four devices
    assert batch_size(1.0, 3) == 8
    assert batch_size(1e18, 100) == 4


def test_steps_are_fifty_passes_within_limits():
    assert number_of_steps(100, 4) == 1300
    assert number_of_steps(4, 4) == 500
    assert number_of_steps(10**6, 4) == 10_000
