"""Detections of all examples and processes have COCO's scores, in whatever order they come."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.evaluation.bootstrap import resampled_counts
from segjax.evaluation.coco import evaluate_coco
from segjax.evaluation.instance_evaluator import RESAMPLES, CocoEvaluator
from segjax.evaluation.nuclei import example_mean_precision

SIZE = (60, 80)
CLASSES = ("background", "cell", "nucleus", "debris")


def window(box):
    x_min, y_min, x_max, y_max = np.round(box).astype(int)
    return SimpleNamespace(
        top=y_min, left=x_min, pixels=np.ones((y_max - y_min, x_max - x_min), bool)
    )


def whole(box):
    mask = window(box)
    return rle.encode(mask.pixels, size=SIZE, top=int(mask.top), left=int(mask.left))


def make_example(name, boxes, classes, *, crowd=None, **others):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return {
        "id": name,
        "image": np.zeros((*SIZE, 3), np.uint8),
        "boxes": boxes,
        "classes": np.asarray(classes, np.int32),
        "masks": tuple(window(box) for box in boxes),
        "crowd": np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd),
        "areas": np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        **others,
    }


def make_prediction(boxes, classes, scores):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "classes": np.asarray(classes, np.int32),
        "scores": np.asarray(scores, np.float32),
        "masks": [whole(box) for box in boxes],
    }


def random_pairs(count=6):
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        n = rng.integers(0, 5)
        corner = rng.integers(0, 35, (n, 2))
        boxes = np.concatenate([corner, corner + rng.integers(8, 24, (n, 2))], axis=1)
        classes = rng.integers(1, 3, n)
        example = make_example(f"image {rng.integers(10**6)}", boxes, classes, image_id=99 - number)
        found = np.concatenate([boxes + rng.integers(0, 2, boxes.shape), [[1, 2, 11, 12]]])
        scores = np.sort(rng.random(n + 1).round(1))[::-1]
        classes = np.append(classes, rng.integers(1, 4))
        pairs.append((example, make_prediction(found, classes, scores)))
    return pairs


def evaluated(pairs, **options):
    evaluator = CocoEvaluator(CLASSES, **options)
    for pair in pairs:
        evaluator.update(*pair)
    return evaluator


@pytest.mark.parametrize("with_image_ids", [True, False])
def test_processes_and_their_order_change_nothing(with_image_ids):
    pairs = random_pairs()
    if not with_image_ids:
        for example, _ in pairs:
            del example["image_id"]
    options = {"extra": {"mean_precision": example_mean_precision}}
    alone = evaluated(pairs, **options)
    assert 0.1 < alone.result()["mask_AP"] < 1
    assert 0 < alone.result()["mean_precision"] < 1
    states = [evaluated(pairs[place::3], **options).state() for place in range(3)]
    merged = CocoEvaluator(CLASSES, **options)
    for state in states[::-1]:
        merged.merge(state)
    np.testing.assert_equal(merged.result(), alone.result())
    assert merged.ground_truth() == alone.ground_truth()
    assert merged.detections() == alone.detections()


def test_scores_are_those_of_the_written_files_with_the_categories_of_the_set():
    evaluator = evaluated(random_pairs(), category_ids=(4, 18, 90))
    truth, found = json.loads(json.dumps([evaluator.ground_truth(), evaluator.detections()]))
    assert [category["id"] for category in truth["categories"]] == [4, 18, 90]
    assert [image["id"] for image in truth["images"]] == [94, 95, 96, 97, 98, 99]
    assert {row["category_id"] for row in found} <= {4, 18, 90}
    result = evaluator.result()
    for iou_type, name in (("bbox", "box"), ("segm", "mask")):
        expected = evaluate_coco(truth, found, iou_type)
        per_class = expected.pop("per_class")
        assert {key: result[f"{name}_{key}"] for key in expected} == pytest.approx(
            expected, nan_ok=True
        )
        np.testing.assert_equal(
            result[f"per_class_{name}_AP"], [np.nan, *(per_class[c] for c in CLASSES[1:])]
        )


def test_boxes_are_corners_and_masks_are_placed_in_the_image():
    example = make_example("a", [[10, 20, 40, 50]], [2])
    evaluator = evaluated([(example, make_prediction([[10, 20, 40, 50]], [2], [0.3]))])
    (annotation,), (row,) = evaluator.ground_truth()["annotations"], evaluator.detections()
    assert annotation["bbox"] == row["bbox"] == [10, 20, 30, 30]
    expected = np.zeros(SIZE, bool)
    expected[20:50, 10:40] = True
    for written in (annotation, row):
        np.testing.assert_array_equal(rle.decode(written["segmentation"]), expected)
    assert row["score"] == np.float32(0.3)
    assert evaluator.result()["mask_AP"] == pytest.approx(1)


def test_boxes_alone_need_no_masks():
    pairs = random_pairs()
    expected = evaluated(pairs).result()
    for example, prediction in pairs:
        del example["masks"], prediction["masks"]
    result = evaluated(pairs, iou_types=("bbox",)).result()
    assert result["box_AP"] == expected["box_AP"]
    assert not any("mask" in name for name in result)


def test_detections_on_a_crowd_count_for_nothing():
    boxes = [[0, 0, 20, 20], [30, 0, 80, 60]]
    example = make_example("a", boxes, [1, 1], crowd=[False, True])
    found = make_prediction([boxes[0], [40, 10, 60, 30]], [1, 1], [0.8, 0.9])
    evaluator = CocoEvaluator(CLASSES)
    assert evaluator.update(example, found) == 1
    assert evaluator.result()["mask_AP"] == pytest.approx(1)


def test_an_object_without_a_mask_counts_in_scores_of_boxes_and_not_of_masks():
    boxes = [[2, 3, 22, 23], [40, 3, 60, 23]]
    example = make_example("a", boxes, [1, 1], has_mask=np.array([True, False]))
    result = evaluated([(example, make_prediction(boxes[:1], [1], [0.9]))]).result()
    # One of two boxes is found: precision 1 at 51 of the 101 recalls.
    assert result["box_AP"] == pytest.approx(51 / 101)
    assert result["box_AR100"] == 0.5
    assert result["mask_AP"] == result["mask_AR100"] == 1
    both = evaluated([(example, make_prediction(boxes, [1, 1], [0.9, 0.8]))]).result()
    assert both["box_AP"] == both["mask_AP"] == 1  # the second mask is ignored


def test_the_score_of_an_example_is_its_panoptic_quality():
    evaluator = CocoEvaluator(CLASSES)
    boxes = [[0, 0, 20, 20], [30, 0, 50, 20], [30, 30, 50, 50]]
    example = make_example("a", boxes, [1, 1, 2])
    # IoU 0.75; the wrong class; too low a score; and no object there.
    found = make_prediction(
        [[0, 0, 15, 20], boxes[1], boxes[2], [60, 0, 70, 10]], [1, 2, 2, 1], [0.9, 0.8, 0.4, 0.6]
    )
    assert evaluator.update(example, found) == pytest.approx(0.75 / 3)
    nothing, empty = make_prediction([], [], []), make_example("b", [], [])
    assert evaluator.update(example | {"id": "c"}, nothing) == 0
    assert evaluator.update(empty, found) == 0
    assert np.isnan(evaluator.update(empty | {"id": "d"}, nothing))
    two_of_one = make_prediction([boxes[0], boxes[0]], [1, 1], [0.9, 0.8])
    assert evaluator.update(make_example("e", boxes[:1], [1]), two_of_one) == pytest.approx(1 / 1.5)


def test_extra_scores_are_means_without_what_is_undefined():
    pairs = random_pairs(4)
    values = iter([0.5, float("nan"), 0.25, 0.75])
    evaluator = evaluated(pairs, extra={"quality": lambda example, prediction: next(values)})
    total = CocoEvaluator(CLASSES, extra={"quality": None})
    total.merge(evaluator.state())
    assert total.result()["quality"] == 0.5


def test_no_examples_have_no_scores():
    evaluator = CocoEvaluator(CLASSES)
    evaluator.merge(CocoEvaluator(CLASSES).state())
    assert evaluator.result() == {}


def test_bad_input_is_refused_by_name():
    evaluator = CocoEvaluator(CLASSES)
    example = make_example("a", [[0, 0, 9, 9]], [1])
    with pytest.raises(ValueError, match=r"a: expected classes in 1\.\.3, found 4 to 4"):
        evaluator.update(example, make_prediction([[0, 0, 9, 9]], [4], [0.5]))
    small = make_prediction([[0, 0, 9, 9]], [1], [0.5])
    small["masks"] = [rle.encode(np.ones((5, 5), bool))]
    with pytest.raises(ValueError, match=r"a: a predicted mask is for an image of \[5, 5\]"):
        evaluator.update(example, small)
    assert evaluator.result() == {}
    with pytest.raises(ValueError, match="a category id for each of 3 classes"):
        CocoEvaluator(CLASSES, category_ids=(1, 2))
    with pytest.raises(ValueError, match="different names"):
        CocoEvaluator(("background", "cat", "cat"))


def test_intervals_are_quantiles_of_the_scores_of_images_drawn_several_times():
    def count(example, prediction):
        return float(len(example["boxes"])) or math.nan

    pairs = random_pairs(8)
    evaluator = evaluated(pairs, extra={"objects": count})
    ordered = sorted(pairs, key=lambda pair: pair[0]["image_id"])
    rows = []
    for weights in resampled_counts(8, RESAMPLES):
        drawn = [pair for pair, times in zip(ordered, weights, strict=True) for _ in range(times)]
        renamed = [({**e, "id": str(k), "image_id": k}, p) for k, (e, p) in enumerate(drawn)]
        rows.append(evaluated(renamed, extra={"objects": count}).result())
    intervals = evaluator.intervals()
    for name in ("box_AP", "mask_AP50", "mask_APs", "box_AR10", "objects"):
        values = [row[name] for row in rows if not math.isnan(row[name])]
        np.testing.assert_allclose(intervals[name], np.quantile(values, [0.025, 0.975]))
    assert intervals["box_AP"][0] < evaluator.result()["box_AP"] < intervals["box_AP"][1]


def test_fewer_than_two_images_have_no_interval():
    assert evaluated([]).intervals() == {}
    assert evaluated(random_pairs(1)).intervals() == {}
