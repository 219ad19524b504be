"""The benchmark that trains in bfloat16 and in float32, on real data."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.benchmarks.mixed_precision import CASES, compare, largest_difference
from segjax.recipes.unet import UNetConfig


def test_losses_are_compared_as_means_over_windows_of_twenty_steps():
    reference = [1.0] * 20 + [2.0] * 20
    swapped = [0.5, 1.5] * 10 + [2.0] * 20  # the same means
    assert largest_difference(reference, swapped) == pytest.approx(0)
    assert largest_difference(reference, [1.0] * 20 + [2.1] * 20) == pytest.approx(0.05)
    assert largest_difference(reference, [1.0] * 39 + [float("nan")]) == np.inf


def test_a_few_steps_in_bfloat16_follow_float32(real_data):
    case = replace(CASES["unet"], config=UNetConfig(features=8, depth=2, padding="SAME"), side=48)
    record = compare(case, real_data, 4)
    losses = record["losses"]
    assert losses["bfloat16"] != losses["float32"]  # otherwise nothing was computed in bfloat16
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.01)
    assert record["equal_pixels"]["same parameters"] > 0.97


@pytest.mark.slow
@pytest.mark.optimized
def test_two_hundred_steps_in_bfloat16_follow_float32(real_data):
    record = compare(CASES["v1"], real_data, 200)
    assert record["loss_difference"]["bfloat16"] < 0.01
    assert record["equal_pixels"]["bfloat16"] > 0.9
    assert record["equal_pixels"]["same parameters"] > 0.99
    assert record["commonest_class"] < 0.7  # equal predictions of one class would say nothing
    first, last = (
        np.mean(record["losses"]["bfloat16"][part]) for part in (slice(20), slice(-20, None))
    )
    assert last < 0.9 * first
