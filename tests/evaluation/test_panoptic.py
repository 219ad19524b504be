"""Panoptic quality, against panopticapi's rules in loops and cases worked by hand."""

import dataclasses

import numpy as np
import pytest

from segjax.evaluation.panoptic import PanopticQuality, Segments, panoptic_quality

COLOR = 200_000  # ids may be 24-bit colours


def slow_counts(truth, prediction, num_classes):
    """[classes, (IoU, TP, FP, FN)] of one image by panopticapi's rules."""
    counts = np.zeros((num_classes, 4))
    matched_true, matched_found = set(), set()
    true_ids, found_ids = (
        [number for number in np.unique(s.ids).tolist() if number] for s in (truth, prediction)
    )
    for true in true_ids:
        for found in found_ids:
            class_id = truth.classes[true]
            if true in truth.crowds or class_id != prediction.classes[found]:
                continue
            both = ((truth.ids == true) & (prediction.ids == found)).sum()
            on_void = ((truth.ids == 0) & (prediction.ids == found)).sum()
            union = (truth.ids == true).sum() + (prediction.ids == found).sum() - both - on_void
            if both / union > 0.5:
                counts[class_id, :2] += both / union, 1
                matched_true.add(true)
                matched_found.add(found)
    for true in set(true_ids) - matched_true - set(truth.crowds):
        counts[truth.classes[true], 3] += 1
    for found in set(found_ids) - matched_found:
        class_id, area = prediction.classes[found], prediction.ids == found
        excused = (truth.ids == 0) & area
        for crowd in truth.crowds:
            if truth.classes[crowd] == class_id:
                excused |= (truth.ids == crowd) & area
        if excused.sum() / area.sum() <= 0.5:
            counts[class_id, 2] += 1
    return counts


def random_pair(seed, *, num_classes=5, size=(40, 50)):
    rng = np.random.default_rng(seed)
    ids = np.zeros(size, np.int64)
    for number in range(1, 15):
        y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        ids[y : y + rng.integers(6, 20), x : x + rng.integers(6, 20)] = number * COLOR
    used = [number for number in np.unique(ids).tolist() if number]
    classes = {number: int(rng.integers(num_classes)) for number in used}
    truth = Segments(ids, classes, crowds=used[::4])
    found = np.roll(ids, rng.integers(0, 3, 2), (0, 1))
    found[rng.random(size) < 0.03] = 0
    changed = {
        n: c if rng.random() < 0.8 else int(rng.integers(num_classes)) for n, c in classes.items()
    }
    found_ids = np.unique(found)[1:].tolist()
    return truth, Segments(found, {number: changed[number] for number in found_ids})


def test_counts_over_images_are_those_of_the_rules():
    quality, expected = PanopticQuality(5, things=[0, 2]), np.zeros((5, 4))
    for seed in range(6):
        truth, prediction = random_pair(seed)
        quality.update(truth, prediction)
        expected += slow_counts(truth, prediction, 5)
    assert (expected.sum(0) > 3).all()
    np.testing.assert_allclose(quality.iou, expected[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(quality.counts, expected[:, 1:].T)

    result = quality.result()
    iou, found, false_positive, false_negative = expected.T
    pq = iou / (found + false_positive / 2 + false_negative / 2)
    np.testing.assert_allclose(result["per_class_PQ"], pq)
    assert result["PQ"] == pytest.approx(pq.mean())
    assert result["PQ_things"] == pytest.approx(pq[[0, 2]].mean())
    assert result["PQ_stuff"] == pytest.approx(pq[[1, 3, 4]].mean())
    np.testing.assert_allclose(
        np.multiply(result["per_class_SQ"], result["per_class_RQ"]), result["per_class_PQ"]
    )


def row(*runs):
    """A map of one row from (id, length) pairs."""
    return np.concatenate([np.full(length, number) for number, length in runs])[None]


def test_a_case_worked_out_by_hand():
    truth = Segments(row((1, 10), (2, 10), (0, 10), (3, 10)), {1: 0, 2: 1, 3: 1}, crowds=[3])
    # 4 finds 8 of the 10 pixels of 1, and 2 void ones that do not count. False positives are 5,
    # which finds too little of 2, and 6, which has another class. 7 and 8 lie mostly on void, and 9
    # on the crowd.
    found = row((4, 8), (0, 2), (5, 4), (6, 5), (7, 1), (4, 2), (7, 3), (8, 4), (7, 1), (9, 10))
    prediction = Segments(found, {4: 0, 5: 1, 6: 0, 7: 0, 8: 2, 9: 1})
    result = panoptic_quality(truth, prediction, num_classes=4, things=[1])
    assert result["per_class_SQ"][0] == pytest.approx(0.8)
    assert result["per_class_RQ"][0] == pytest.approx(1 / 1.5)
    assert result["per_class_PQ"][1] == 0
    np.testing.assert_array_equal(np.isnan(result["per_class_PQ"]), [False, False, True, True])
    assert result["PQ"] == pytest.approx(0.8 / 1.5 / 2)
    assert result["SQ"] == pytest.approx(0.4)  # a class without matches counts as 0
    assert result["PQ_things"] == 0


def test_merging_equals_counting_in_one_go():
    parts, whole = [PanopticQuality(5) for _ in range(2)], PanopticQuality(5)
    for seed in range(4):
        pair = random_pair(seed)
        parts[seed % 2].update(*pair)
        whole.update(*pair)
    parts[1].merge(parts[0])
    np.testing.assert_allclose(parts[1].iou, whole.iou)
    np.testing.assert_array_equal(parts[1].counts, whole.counts)
    with pytest.raises(ValueError, match="different classes"):
        whole.merge(PanopticQuality(5, things=[1]))


def test_nothing_at_all_is_undefined_and_a_perfect_prediction_scores_one():
    truth, _ = random_pair(0)
    truth = dataclasses.replace(truth, crowds=())
    result = panoptic_quality(truth, truth, num_classes=5)
    assert result["PQ"] == result["RQ"] == 1
    assert np.isnan(result["PQ_things"])
    empty = Segments(np.zeros((4, 4), np.int32), {})
    assert np.isnan(panoptic_quality(empty, empty, num_classes=5)["PQ"])


def test_bad_segments_are_refused_by_name():
    good = Segments(row((1, 4)), {1: 0})
    with pytest.raises(ValueError, match=r"prediction: expected a class in \[0, 2\) for segment 7"):
        panoptic_quality(good, Segments(row((7, 4)), {1: 0}), num_classes=2)
    with pytest.raises(ValueError, match=r"truth: expected a class .* found 5"):
        panoptic_quality(Segments(row((1, 4)), {1: 5}), good, num_classes=2)
    with pytest.raises(ValueError, match="expected ids ≥ 0"):
        panoptic_quality(Segments(row((-1, 4)), {}), good, num_classes=2)
    with pytest.raises(ValueError, match="shape"):
        panoptic_quality(Segments(row((1, 5)), {1: 0}), good, num_classes=2)
    with pytest.raises(ValueError, match=r"things must be in \[0, 2\), found \[0, 2\]"):
        PanopticQuality(2, things=[0, 2])
