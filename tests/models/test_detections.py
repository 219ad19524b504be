from dataclasses import replace

import jax
import numpy as np
import pytest

from segjax.models.detections import DetectionConfig, detect
from tests.models.slow_boxes import slow_decode, slow_nms

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZES = np.array([[40, 64], [64, 30]], np.int32)
REGIONS, CLASSES = 20, 3
CONFIG = DetectionConfig(score_threshold=0.3, max_detections=20, min_size=1.0)


def draw(boxes=CLASSES):
    """Random (logits, deltas, proposals, valid) for two images, a quarter of them not valid."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-5, 50, (2, REGIONS, 2))
    proposals = np.concatenate([corner, corner + rng.uniform(6, 30, (2, REGIONS, 2))], axis=2)
    return (
        rng.normal(0, 1.5, (2, REGIONS, 1 + CLASSES)).astype(np.float32),
        rng.normal(0, 2, (2, REGIONS, boxes, 4)).astype(np.float32),
        proposals.astype(np.float32),
        np.arange(2 * REGIONS).reshape(2, REGIONS) % 4 > 0,
    )


def slow_detect(logits, deltas, proposals, valid, size, config):
    candidates = []
    for region in np.flatnonzero(valid):
        exponentials = np.exp(logits[region].astype(np.float64))
        scores = exponentials / exponentials.sum()
        for label in range(1, len(scores)):
            moves = deltas[region, min(label, len(deltas[region])) - 1]
            box = slow_decode(moves, proposals[region].astype(float), WEIGHTS, size)
            if scores[label] > config.score_threshold and (box[2:] - box[:2]).min() > (
                config.min_size
            ):
                candidates.append((scores[label], label, box))
    candidates = sorted(candidates, key=lambda entry: -entry[0])[: config.max_candidates]
    return slow_nms(candidates, config.nms_threshold)[: config.max_detections]


@jax.jit
def compiled(*inputs):
    return detect(*inputs, SIZES, CONFIG)


@pytest.mark.parametrize("boxes", [CLASSES, 1])
@pytest.mark.parametrize("changes", [{}, {"max_detections": 4}, {"max_candidates": 6}])
def test_detections_agree_with_numpy(boxes, changes):
    inputs, config = draw(boxes), replace(CONFIG, **changes)
    found = jax.device_get(jax.jit(lambda *inputs: detect(*inputs, SIZES, config))(*inputs))
    for image in (0, 1):
        expected = slow_detect(*(x[image] for x in inputs), SIZES[image], config)
        assert expected
        valid = found["valid"][image]
        np.testing.assert_array_equal(valid, np.arange(config.max_detections) < len(expected))
        scores, labels, places = zip(*expected, strict=True)
        np.testing.assert_allclose(found["scores"][image][valid], scores, rtol=1e-5)
        np.testing.assert_array_equal(found["classes"][image][valid], labels)
        np.testing.assert_allclose(found["boxes"][image][valid], places, atol=1e-3)
        for value in found.values():
            assert not value[image][~valid].any()


def one_region_each(scores, proposals):
    """Inputs of two equal images whose regions have these scores for classes 1 … and no move."""
    scores = np.array(scores, np.float64)
    logits = np.log(np.concatenate([1 - scores.sum(1, keepdims=True), scores], axis=1))
    count = len(scores)
    return tuple(
        np.stack([x, x])
        for x in (
            logits.astype(np.float32),
            np.zeros((count, CLASSES, 4), np.float32),
            np.array(proposals, np.float32),
            np.ones(count, bool),
        )
    )


def test_only_boxes_of_the_same_class_suppress_one_another():
    box, near = [5, 5, 25, 25], [6, 5, 26, 25]
    found = compiled(*one_region_each([[0.8, 0.1, 0.05], [0.4, 0.35, 0.05]], [box, near]))
    np.testing.assert_array_equal(found["classes"][0, :3], [1, 2, 0])
    np.testing.assert_allclose(found["boxes"][0, :2], [box, near], atol=1e-4)


def test_a_score_at_the_threshold_is_no_detection():
    above = np.nextafter(np.float32(0.3), np.float32(1)) + 1e-4
    inputs = one_region_each([[0.25, 0.29, 0.05], [float(above), 0.2, 0.1]], [[5, 5, 25, 25]] * 2)
    found = compiled(*inputs)
    assert found["valid"].sum(axis=1).tolist() == [1, 1]


def test_a_region_that_is_not_valid_is_no_detection_whatever_its_score():
    inputs = one_region_each([[0.9, 0.05, 0.02]], [[5, 5, 25, 25]])
    found = compiled(*inputs[:3], np.array([[True], [False]]))
    assert found["valid"].sum(axis=1).tolist() == [1, 0]


def test_boxes_are_cut_at_the_border_and_dropped_when_nothing_is_left():
    inputs = one_region_each([[0.9, 0.05, 0.02]] * 2, [[-10, 30, 20, 90], [70, 10, 90, 20]])
    found = compiled(*inputs)
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 30, 20, 40], atol=1e-4)
    np.testing.assert_allclose(found["boxes"][1, 0], [0, 30, 20, 64], atol=1e-4)
    assert found["valid"].sum(axis=1).tolist() == [1, 1]
