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
    pixels = {0: 900, 1: 100, 255: 7}
    for rule, ratio in (("root", 3), ("balanced", 9)):
        weights = class_weights(rule, pixels, 3)
        assert weights[1] / weights[0] == pytest.approx(ratio, rel=1e-3)
        assert weights[2] == weights[1]
        assert 0.9 * weights[0] + 0.1 * weights[1] == pytest.approx(1, rel=1e-3)
    # "balanced" is scikit-learn's pixels / (classes · pixels of the class).
    assert class_weights("balanced", pixels, 2) == (0.5556, 5.0)
    text = describe_balance(pixels, ("background", "cell"))
    assert text == (
        "the rarest class is cell, with 10 % of the labelled pixels; --loss.class-weights root "
        "would weight them by 2.5"
    )
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
