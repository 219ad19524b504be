"""Scores equal those of COCO's own code, and bad input is named."""

import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segjax.coco import run_lengths as rle
from segjax.evaluation.coco import evaluate_coco

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = (160, 200)


def window_mask(box):
    """A mask that fills a box [x, y, width, height], with a corner cut off."""
    x, y, width, height = (round(value) for value in box)
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    mask[y : y + height // 3, x : x + width // 3] = False
    return rle.encode(mask)


def annotation(number, image_id, category_id, box, *, crowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(value) for value in box],
        "area": float(box[2] * box[3]),
        "iscrowd": crowd,
        "segmentation": window_mask(box),
    }


def detection(image_id, category_id, box, score):
    row = annotation(0, image_id, category_id, box)
    return {key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {
        "score": score
    }


def random_world(seed, *, images=8, categories=(3, 7, 21), decimals=1, copies=3, crowd=0.15):
    """Objects of all sizes, and detections around them, elsewhere and of the wrong class."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image_id in 10 + 3 * np.arange(images):
        for _ in range(rng.integers(0, 6)):
            width, height = np.exp(rng.uniform(np.log(4), np.log(140), 2)).round()
            x, y = (rng.uniform(0, 1, 2) * (SIZE[1] - width, SIZE[0] - height)).round()
            box, category = (x, y, width, height), int(rng.choice(categories[:-1]))
            is_crowd = int(rng.random() < crowd)
            number = len(annotations) + 1
            annotations.append(annotation(number, int(image_id), category, box, crowd=is_crowd))
            for _ in range(rng.integers(0, copies + 1)):
                moved = np.array(box) + rng.normal(0, 0.1, 4) * (width, height, width, height)
                moved[:2] = moved[:2].round().clip(0)
                moved[2:] = moved[2:].round().clip(3)
                guess = category if rng.random() < 0.8 else int(rng.choice(categories))
                score = float(rng.random().__round__(decimals))  # many ties
                found.append(detection(int(image_id), guess, moved.tolist(), score))
    sizes = {"height": SIZE[0], "width": SIZE[1]}
    truth = {
        "images": [{"id": int(10 + 3 * i), **sizes} for i in range(images)],
        "categories": [{"id": i, "name": f"class {i}"} for i in categories],
        "annotations": annotations,
    }
    return truth, found


def pycocotools_scores(truth, found, iou_type, max_detections=(1, 10, 100)):
    """Scores by COCO's own code, which cannot read an empty list of results."""
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = copy.deepcopy(truth)
        objects.createIndex()
        if found:
            results = objects.loadRes(copy.deepcopy(found))
        else:
            results = COCO()
            results.dataset = copy.deepcopy(truth) | {"annotations": []}
            results.createIndex()
        counting = COCOeval(objects, results, iou_type)
        counting.params.maxDets = list(max_detections)
        counting.evaluate()
        counting.accumulate()
        if tuple(max_detections) == (1, 10, 100):
            counting.summarize()
    return counting


def check_equal(truth, found, iou_type):
    expected = pycocotools_scores(truth, found, iou_type)
    result = evaluate_coco(truth, found, iou_type)
    values = np.where(expected.stats < 0, np.nan, expected.stats)
    np.testing.assert_allclose([result[name] for name in NAMES], values, rtol=1e-12)
    precision = expected.eval["precision"][..., 0, -1]
    for place, category in enumerate(expected.params.catIds):
        name = next(c["name"] for c in truth["categories"] if c["id"] == category)
        ours, theirs = result["per_class"][name], precision[:, :, place]
        np.testing.assert_allclose(ours, np.nan if theirs.max() < 0 else theirs.mean())
    return result


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_pycocotools(seed, iou_type):
    truth, found = random_world(seed)
    assert {row["iscrowd"] for row in truth["annotations"]} == {0, 1}
    result = check_equal(truth, found, iou_type)
    assert 0.05 < result["AP"] < 0.95
    assert np.isnan(result["per_class"]["class 21"])  # never true


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_more_detections_than_count_are_cut_by_score(iou_type):
    truth, found = random_world(5, images=3, copies=250, decimals=2, categories=(1, 2))
    pairs = [(row["image_id"], row["category_id"]) for row in found]
    assert max(map(pairs.count, set(pairs))) > 300
    check_equal(truth, found, iou_type)
    result = evaluate_coco(truth, found, iou_type, max_detections=(5, 300))
    expected = pycocotools_scores(truth, found, iou_type, (5, 300)).eval
    assert result["AP"] == pytest.approx(expected["precision"][:, :, 0, 0, 1].mean(), rel=1e-12)
    recall = expected["recall"][:, 0, 0]  # of the class that occurs in the truth
    assert result["AR5"] == pytest.approx(recall[..., 0].mean())
    assert result["AR300"] == pytest.approx(recall[..., 1].mean())
    assert "AR100" not in result


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detection_at_all_scores_zero_and_no_object_is_undefined(iou_type):
    truth, found = random_world(0, crowd=0.0)
    assert check_equal(truth, [], iou_type)["AP"] == 0
    nothing = truth | {"annotations": []}
    result = check_equal(nothing, found, iou_type)
    assert all(np.isnan(result[name]) for name in NAMES)


def hand_made():
    """One image, two objects of one class and a crowd."""
    truth, _ = random_world(0, images=1)
    truth["categories"] = [{"id": 1, "name": "class 1"}]
    boxes = [(0, 0, 40, 40), (60, 0, 40, 40), (0, 60, 100, 100)]
    truth["annotations"] = [
        annotation(i + 1, 10, 1, box, crowd=int(i == 2)) for i, box in enumerate(boxes)
    ]
    return truth, boxes


def test_scores_of_a_case_worked_out_by_hand():
    truth, boxes = hand_made()
    # A hit, a miss of lower score, and two within the crowd that do not count.
    found = [
        detection(10, 1, boxes[0], 0.9),
        detection(10, 1, (120, 100, 20, 20), 0.8),
        detection(10, 1, (10, 70, 30, 30), 0.95),
        detection(10, 1, (50, 70, 30, 30), 0.95),
    ]
    result = check_equal(truth, found, "bbox")
    # Precision 1 at the 51 of 101 recalls up to a half, and 0 beyond.
    assert result["AP"] == pytest.approx(51 / 101)
    assert result["AR100"] == result["AR10"] == 0.5
    assert result["AR1"] == 0  # the best detection lies on the crowd
    assert np.isnan(result["APs"])
    assert result["APm"] == pytest.approx(51 / 101)


def test_the_earlier_of_equally_scored_detections_goes_first():
    truth, boxes = hand_made()
    good, bad = detection(10, 1, boxes[0], 0.5), detection(10, 1, (120, 100, 20, 20), 0.5)
    first = check_equal(truth, [good, bad], "bbox")["AP"]
    assert check_equal(truth, [bad, good], "bbox")["AP"] == pytest.approx(first / 2)


def test_sizes_of_masks_are_those_of_their_boxes_if_the_results_have_boxes():
    truth, boxes = hand_made()
    wrong = detection(10, 1, (120, 100, 40, 40), 0.95) | {"bbox": [120.0, 100.0, 5.0, 5.0]}
    found = [detection(10, 1, box, 0.9) for box in boxes[:2]] + [wrong]
    assert check_equal(truth, found, "segm")["APm"] == pytest.approx(1)  # the wrong one is small
    for row in found:
        del row["bbox"]
    assert check_equal(truth, found, "segm")["APm"] == pytest.approx(2 / 3)


def test_objects_without_usable_ids_are_found():
    """COCO's code takes a match with an object of id 0 for no match."""
    truth, boxes = hand_made()
    found = [detection(10, 1, box, 0.9) for box in boxes[:2]]
    truth["annotations"][0]["id"] = 0
    assert pycocotools_scores(truth, found, "bbox").stats[1] < 0.6
    assert evaluate_coco(truth, found, "bbox")["AP"] == pytest.approx(1)
    truth["annotations"][1]["id"] = 0
    assert evaluate_coco(truth, found, "bbox")["AP"] == pytest.approx(1)


def test_files_are_read_nothing_is_printed_and_nothing_is_changed(tmp_path, capfd):
    truth, found = random_world(1)
    before = copy.deepcopy((truth, found))
    expected = evaluate_coco(truth, found, "segm")
    assert (truth, found) == before
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    result = evaluate_coco(tmp_path / "truth.json", str(tmp_path / "found.json"), "segm")
    np.testing.assert_equal(result, expected)
    assert capfd.readouterr() == ("", "")


def test_polygons_and_uncompressed_runs_of_the_truth_are_read():
    truth, boxes = hand_made()
    found = [detection(10, 1, box, 0.9) for box in boxes[:2]]
    for row, box in zip(truth["annotations"][:2], boxes[:2], strict=True):
        x, y, width, height = box
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        row["segmentation"] = [[float(value) for value in corners]]
    crowd = truth["annotations"][2]
    runs = rle.run_lengths(rle.decode(crowd["segmentation"]))
    crowd["segmentation"] = {"size": list(SIZE), "counts": runs.tolist()}
    assert check_equal(truth, found, "segm")["AP50"] == pytest.approx(1)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t, d: d[1].update(category_id=5), 51 / 101),  # counts neither for nor against
        (lambda t, d: d[0].pop("segmentation"), None),  # the box is the mask
        (lambda t, d: t["annotations"][1].update(image_id=4), None),
        (lambda t, d: t["annotations"][1].update(category_id=4), None),
        (lambda t, d: t["images"].append(t["images"][0]), 1),
    ],
)
def test_input_that_pycocotools_scores_has_its_scores(change, expected, iou_type):
    truth, boxes = hand_made()
    found = [detection(10, 1, box, 0.9) for box in boxes[:2]]
    change(truth, found)
    result = check_equal(truth, found, iou_type)
    if expected is not None:
        assert result["AP"] == pytest.approx(expected)


def test_categories_of_one_name_are_told_apart_by_their_ids():
    truth, boxes = hand_made()
    truth["categories"].append({"id": 2, "name": "class 1"})
    result = evaluate_coco(truth, [detection(10, 1, box, 0.9) for box in boxes[:2]], "bbox")
    assert result["per_class"].keys() == {"class 1 (1)", "class 1 (2)"}
    assert result["per_class"]["class 1 (1)"] == pytest.approx(1)
    assert np.isnan(result["per_class"]["class 1 (2)"])


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("1", 1), (False, 0), (True, 1)])
def test_the_meaning_of_a_crowd_does_not_depend_on_its_type(text, number):
    results = []
    for crowd in (text, number):
        truth, boxes = hand_made()
        truth["annotations"][0]["iscrowd"] = crowd
        found = [detection(10, 1, box, 0.9) for box in boxes[1:2]]
        results.append(evaluate_coco(truth, found, "bbox")["AP"])
    # Found is the second of two objects, or the only one beside a crowd.
    assert results == pytest.approx([1, 1] if number else [51 / 101] * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: d[0].update(image_id=99), "detection 0 has image_id 99, which is not"),
        (lambda t, d: d[1].pop("score"), "detection 1 has no 'score'"),
        (lambda t, d: [row.pop("bbox") for row in d] and d[0].pop("segmentation"), "0 has no 'seg"),
        (lambda t, d: d[0].update(score=float("nan")), "expected a number as score, found nan"),
        (lambda t, d: d[0].update(score="high"), "expected a number as score, found 'high'"),
        (lambda t, d: d[0]["segmentation"].update(size=[9, 9]), "is for an image of [9, 9]"),
        (lambda t, d: d[0].update(segmentation=[[1, 2, 3]]), "expected polygons [[x0, y0"),
        (lambda t, d: t.pop("categories"), 'with a list "categories"'),
        (lambda t, d: t["annotations"][2].pop("area"), "annotation 2 has no 'area'"),
        (lambda t, d: t["annotations"][2].pop("iscrowd"), "annotation 2 has no 'iscrowd'"),
        (lambda t, d: t["annotations"][2].update(area=None), "2: area is None; expected a number"),
        (lambda t, d: t["annotations"][1].pop("id"), "annotation 1 has no 'id'"),
        (lambda t, d: d[0].update(score=10**400), "expected a number as score, found 1000"),
        (lambda t, d: t["annotations"][2].update(area=10**400), "2: area is 1000"),
        (lambda t, d: d[0].update(segmentation=[[1e9, 0, 4, 0, 4, 4]]), "beyond 1e+06 pixels"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    truth, boxes = hand_made()
    found = [detection(10, 1, box, 0.9) for box in boxes[:2]]
    change(truth, found)
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate_coco(truth, found, "segm")


def test_other_arguments_are_refused_by_name(tmp_path):
    truth, found = random_world(0)
    with pytest.raises(ValueError, match='"bbox" or "segm", not \'mask\''):
        evaluate_coco(truth, found, "mask")
    with pytest.raises(ValueError, match="max_detections must be ascending"):
        evaluate_coco(truth, found, "bbox", max_detections=(100, 10))
    with pytest.raises(ValueError, match="expected COCO's result format, a list, found dict"):
        evaluate_coco(truth, {"annotations": found}, "bbox")
    with pytest.raises(ValueError, match="expected an array of finite numbers"):
        evaluate_coco(truth, np.full((1, 7), np.inf), "bbox")
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        evaluate_coco(tmp_path / "nowhere.json", found, "bbox")
