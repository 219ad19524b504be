"""The share of images without objects among those that are trained on."""

import numpy as np
import pytest

from segjax.data.sources.empty_images import choose_images, note_left_out

COUNTS = [2, 0, 0, 1, 0, 5, 0, 0, 0, 1, 0, 0]  # 4 images with objects, 8 without


@pytest.mark.parametrize(
    ("share", "empty"),
    [(0.0, 0), (0.19, 0), (0.2, 1), (0.33, 1), (0.34, 2), (0.5, 4), (0.66, 7), (0.67, 8), (1.0, 8)],
)
def test_the_share_is_the_largest_that_images_without_objects_may_have(share, empty):
    places = choose_images(COUNTS, empty_share=share)
    assert (np.diff(places) > 0).all()
    counts = np.array(COUNTS)[places]
    assert (counts > 0).sum() == 4  # all of them
    assert (counts == 0).sum() == empty
    assert empty / (empty + 4) <= share


def test_shares_that_rounding_falls_short_of_are_met():
    for filled in range(1, 60):
        for empty in range(1, 60):
            counts = [1] * filled + [0] * empty
            assert len(choose_images(counts, empty_share=empty / (filled + empty))) == len(counts)


def test_a_seed_draws_the_same_images_and_a_larger_share_keeps_them():
    drawn = [set(choose_images(COUNTS, empty_share=0.4, seed=seed).tolist()) for seed in range(20)]
    assert drawn[3] == set(choose_images(COUNTS, empty_share=0.4, seed=3).tolist())
    assert len({frozenset(each) for each in drawn}) > 5
    assert set().union(*drawn) == set(range(len(COUNTS)))  # each image has its chance
    for seed, each in enumerate(drawn):
        assert each < set(choose_images(COUNTS, empty_share=0.6, seed=seed).tolist())


def test_without_images_with_objects_only_the_whole_share_keeps_any():
    assert choose_images([0, 0], empty_share=0.9).tolist() == []
    assert choose_images([0, 0], empty_share=1.0).tolist() == [0, 1]
    assert choose_images([], empty_share=0.5).tolist() == []


@pytest.mark.parametrize("share", [-0.1, 1.01, 20, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused_by_its_name(share):
    with pytest.raises(ValueError, match=r"input\.empty_share: expected a share from 0 to 1, got"):
        choose_images(COUNTS, empty_share=share)


def test_what_is_left_out_is_counted():
    assert note_left_out(COUNTS, 12, 1.0) == []
    assert note_left_out(COUNTS, 6, 0.4) == [
        "6 of 8 images without objects are left out (input.empty_share 0.4)"
    ]
