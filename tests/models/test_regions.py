from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.regions import AnchorSampling, RegionPooling, RegionSampling, repeat_valid
from segjax.ops.roi_align import roi_align
from segjax.ops.roi_pool import roi_pool, roi_warp
from tests.models.slow_boxes import slow_iou

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("pooling", "operator"),
    [
        (RegionPooling("pool"), roi_pool),
        (RegionPooling("warp"), roi_warp),
        (RegionPooling(), partial(roi_align, sampling_ratio=2, aligned=True)),
        (
            RegionPooling(sampling_ratio=1, aligned=False),
            partial(roi_align, sampling_ratio=1, aligned=False),
        ),
    ],
)
def test_a_single_map_is_read_by_the_operator_of_the_method(pooling, operator):
    features = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype(np.float32)
    boxes = np.array([[[3, 5, 70, 50], [0, 0, 31, 96]]], np.float32)
    found = jax.jit(partial(pooling, strides=(16,), output_size=3))([features], boxes)
    expected = jax.jit(partial(operator, output_size=3, spatial_scale=1 / 16))(features, boxes)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (1, 2, 3, 3, 2)


@pytest.mark.parametrize(
    ("rule", "levels"),
    [("detectron2", [0, 0, 1, 1, 2, 3, 3]), ("torchvision", [0, 0, 1, 1, 2, 3, 3])],
)
def test_a_box_is_read_from_the_level_of_its_size(rule, levels):
    """Equation 1 of Lin et al. gives P4 for a side of 224 pixels; each map holds its number."""
    maps = [
        np.full((1, 512 // s, 512 // s, 1), i, np.float32) for i, s in enumerate((4, 8, 16, 32))
    ]
    sides = [8, 111, 113, 223, 225, 449, 512]
    boxes = np.array([[[0, 0, side, side] for side in sides]], np.float32)
    pooling = RegionPooling(level_rule=rule)
    found = jax.jit(partial(pooling, strides=(4, 8, 16, 32), output_size=1))(maps, boxes)
    np.testing.assert_allclose(found.ravel(), levels)


def test_methods_of_a_single_map_and_unknown_ones_are_refused():
    features, boxes = jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 1, 4))
    options = {"output_size": 2}
    with pytest.raises(ValueError, match=r"'warp' reads a single map.* has 2"):
        RegionPooling("warp")([features] * 2, boxes, strides=(4, 8), **options)
    with pytest.raises(ValueError, match="align, warp or pool; got 'crop'"):
        RegionPooling("crop")([features], boxes, strides=(16,), **options)


def boxes_around(corners, side=10):
    corners = np.array(corners, np.float32)
    return np.concatenate([corners, corners + side], axis=1)


# Two objects, and an empty place whose box would match everything near the origin.
TRUTH = np.concatenate([boxes_around([[20, 20], [60, 60]]), np.zeros((1, 4), np.float32)])
CLASSES = np.array([2, 1, 0], np.int32)
# IoU with the first object: 1, 9/11, 1/2 (moved by 10/3), 1/3, 0; then with the second.
MOVES = [20, 21, 20 + 10 / 3 + 0.01, 25, 0]
CANDIDATES = np.concatenate(
    [
        boxes_around([[x, 20] for x in MOVES]),
        boxes_around([[60, 62], [68, 68], [90, 90], [0, 90], [90, 0]]),
    ]
)
OVERLAPS = np.array([[slow_iou(c.astype(float), t) for t in TRUTH[:2]] for c in CANDIDATES])

sample_anchors = jax.jit(
    lambda key, sampling, truth, valid: sampling(key, CANDIDATES, truth, valid), static_argnums=1
)
sample_regions = jax.jit(
    lambda key, sampling, available, classes: sampling(key, CANDIDATES, available, TRUTH, classes),
    static_argnums=1,
)


def test_anchors_are_positive_above_and_negative_below_the_thresholds():
    sampling = AnchorSampling(size=20, positive_fraction=1.0)
    found = jax.device_get(sample_anchors(KEY, sampling, TRUTH, CLASSES > 0))
    drawn = found["index"][found["valid"]]
    positive = found["positive"][found["valid"]]
    best = OVERLAPS.max(axis=1)
    assert set(drawn[positive]) == set(np.flatnonzero(best >= 0.7)) | {5}  # best of its object
    assert set(drawn[~positive]) == set(np.flatnonzero(best < 0.3))
    assert len(drawn) == len(set(drawn)) < len(CANDIDATES)
    matched = found["matched"][: positive.sum()]
    np.testing.assert_array_equal(matched, OVERLAPS[drawn[positive]].argmax(axis=1))
    assert positive[: positive.sum()].all()  # they come first


def test_an_image_without_objects_has_negative_anchors_only():
    sampling = AnchorSampling(size=6)
    found = jax.device_get(sample_anchors(KEY, sampling, TRUTH, np.zeros(3, bool)))
    assert found["valid"].all()
    assert not found["positive"].any()


def test_positive_anchors_take_no_more_than_their_share():
    sampling = AnchorSampling(size=4, positive_fraction=0.25)
    for seed in range(3):
        found = sample_anchors(jax.random.key(seed), sampling, TRUTH, CLASSES > 0)
        assert found["positive"].tolist() == [True, False, False, False]
        assert found["valid"].all()


def test_regions_are_drawn_with_their_classes_positives_first_and_the_true_boxes_among_them():
    available = np.ones(len(CANDIDATES), bool)
    sampling = RegionSampling(size=40, positive_fraction=0.5)
    found = jax.device_get(sample_regions(KEY, sampling, available, CLASSES))
    # All candidates and the two true boxes are drawn once, the empty place never.
    valid, positive = found["valid"], found["positive"]
    assert valid.sum() == len(CANDIDATES) + 2
    everything = np.concatenate([CANDIDATES, TRUTH[:2]])
    np.testing.assert_array_equal(
        np.unique(found["boxes"][valid], axis=0), np.unique(everything, axis=0)
    )
    overlaps = np.array(
        [[slow_iou(b.astype(float), t) for t in TRUTH[:2]] for b in found["boxes"][valid]]
    )
    np.testing.assert_array_equal(positive[valid], overlaps.max(axis=1) >= 0.5)
    assert positive[: positive.sum()].all()
    expected = np.where(overlaps.max(axis=1) >= 0.5, CLASSES[overlaps.argmax(axis=1)], 0)
    np.testing.assert_array_equal(found["classes"][valid], expected)
    np.testing.assert_array_equal(found["matched"][positive], overlaps.argmax(1)[positive[valid]])
    # Valid ones in turn fill the invalid places.
    count = valid.sum()
    np.testing.assert_array_equal(found["boxes"][count:], found["boxes"][: 40 - count])
    assert not found["classes"][~valid].any()
    assert not positive[~valid].any()


def test_proposals_that_are_not_valid_are_never_drawn():
    available = np.arange(len(CANDIDATES)) % 2 == 0
    sampling = RegionSampling(size=40, positive_fraction=0.5)
    found = jax.device_get(sample_regions(KEY, sampling, available, CLASSES))
    assert found["valid"].sum() == available.sum() + 2
    drawn = {tuple(box) for box in found["boxes"]}
    assert drawn == {tuple(box) for box in (*CANDIDATES[available], *TRUTH[:2])}


def test_without_objects_all_regions_are_background():
    available = np.ones(len(CANDIDATES), bool)
    sampling = RegionSampling(size=40, positive_fraction=0.5)
    found = jax.device_get(sample_regions(KEY, sampling, available, np.zeros(3, np.int32)))
    assert found["valid"].sum() == len(CANDIDATES)
    assert not found["classes"].any()
    assert not found["positive"].any()


def test_without_proposals_and_objects_nothing_is_valid_and_nothing_is_infinite():
    available = np.zeros(len(CANDIDATES), bool)
    sampling = RegionSampling(size=40, positive_fraction=0.5)
    found = jax.device_get(sample_regions(KEY, sampling, available, np.zeros(3, np.int32)))
    assert not found["valid"].any()
    assert np.isfinite(found["boxes"]).all()


def test_positive_regions_take_no_more_than_their_share():
    available = np.ones(len(CANDIDATES), bool)
    sampling = RegionSampling(size=6, positive_fraction=0.34)
    assert sampling.positives == 2
    for seed in range(3):
        found = sample_regions(jax.random.key(seed), sampling, available, CLASSES)
        assert found["positive"].tolist() == [True] * 2 + [False] * 4
        assert found["valid"].all()


def test_the_draw_follows_the_key_alone():
    available = np.ones(len(CANDIDATES), bool)
    sampling = RegionSampling(size=6)
    draws = [
        np.asarray(sample_regions(jax.random.key(seed), sampling, available, CLASSES)["boxes"])
        for seed in (0, 0, *range(1, 6))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert any(not np.array_equal(draws[0], other) for other in draws[2:])


def test_valid_values_are_repeated_in_turn_behind_themselves():
    values = np.array([5, 6, 7, 8, 9], np.int32)
    found = repeat_valid(values, np.array([True, True, False, False, False]))
    np.testing.assert_array_equal(found, [5, 6, 5, 6, 5])
    np.testing.assert_array_equal(repeat_valid(values, np.ones(5, bool)), values)
    np.testing.assert_array_equal(repeat_valid(values, np.zeros(5, bool)), [5] * 5)
