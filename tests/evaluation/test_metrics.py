import json

import numpy as np
import pytest

from segjax.evaluation.boundary import boundary_iou, trimap_counts
from segjax.evaluation.cell_tracking import cell_tracking_seg
from segjax.evaluation.confusion_matrix import ConfusionMatrix
from segjax.evaluation.em_segmentation import em_counts, em_errors
from segjax.evaluation.metrics import (
    BoundaryIou,
    CellTracking,
    Confusion,
    EmErrors,
    NegativeLogLikelihood,
    RocAuc,
    TrimapIou,
)
from segjax.evaluation.roc import roc_auc
from segjax.evaluation.warping import connected_cells

METRICS = (
    Confusion(2),
    BoundaryIou(2),
    TrimapIou(2, border="classes"),
    NegativeLogLikelihood(),
    RocAuc(),
    EmErrors(thresholds=(0.4, 0.6)),
    CellTracking(),
)


def example_and_prediction(seed, quality=3.0):
    """Blocks of class 1 with some ignored pixels, and a noisy prediction of them."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 2, (4, 5)), np.ones((6, 6))).astype(np.uint8)
    logits = rng.normal((labels - 0.5) * quality, 1.0)
    cell = 1 / (1 + np.exp(-logits))
    probabilities = np.stack([1 - cell, cell], -1).astype(np.float32)
    predicted = (cell > 0.5).astype(np.uint8)
    return (
        {"id": str(seed), "labels": labels, "instances": connected_cells(labels == 1)},
        {
            "probabilities": probabilities,
            "labels": predicted,
            "instances": connected_cells(predicted == 1),
        },
    )


def ignoring(example, share=0.2):
    labels = example["labels"].copy()
    labels[np.random.default_rng(0).random(labels.shape) < share] = 255
    return {**example, "labels": labels}


def summed(metric, pairs):
    counts = [metric.counts(*pair) for pair in pairs]
    return {name: sum(part[name] for part in counts) for name in counts[0]}


def stacked(pairs, side, key):
    return np.stack([pair[side][key] for pair in pairs])


PAIRS = [example_and_prediction(seed) for seed in range(3)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_counts_have_one_shape_and_64_bits_so_that_any_sum_is_exact(metric):
    first, second, _ = (metric.counts(*pair) for pair in PAIRS)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype in (np.int64, np.float64), name
        assert value.shape == second[name].shape, name


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_results_are_plain_numbers_that_json_takes(metric):
    result = metric.result(summed(metric, PAIRS))
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_score_ranks_a_good_prediction_above_a_bad_one(metric):
    good, bad = example_and_prediction(0, quality=5.0), example_and_prediction(0, quality=1.0)
    assert metric.example_score(metric.counts(*good)) > metric.example_score(metric.counts(*bad))


def test_names_of_results_do_not_collide():
    names = [name for metric in METRICS for name in metric.result(metric.counts(*PAIRS[0]))]
    assert len(names) == len(set(names))


def test_confusion_of_examples_is_that_of_the_set():
    pairs = [(ignoring(example), prediction) for example, prediction in PAIRS]
    matrix = ConfusionMatrix(2, background=0)
    matrix.update(stacked(pairs, 0, "labels"), stacked(pairs, 1, "labels"))
    metric = Confusion(2, background=0)
    result = metric.result(summed(metric, pairs))
    assert result["confusion_matrix"] == matrix.counts.tolist()
    assert result["foreground_dice"] == matrix.result()["foreground_dice"]
    assert result["iou"] == matrix.result()["iou"].tolist()


def test_boundary_iou_of_one_example_is_that_of_the_function():
    example, prediction = PAIRS[0]
    metric = BoundaryIou(2, dilation_ratio=0.05)
    result = metric.result(metric.counts(example, prediction))
    expected = boundary_iou(
        example["labels"], prediction["labels"], num_classes=2, dilation_ratio=0.05
    )
    assert result["boundary_iou"] == expected.tolist()
    assert result["mean_boundary_iou"] == pytest.approx(expected.mean())


def test_trimap_scores_are_those_of_the_pixels_in_all_bands_of_the_set():
    pairs = [(ignoring(example, 0.01), prediction) for example, prediction in PAIRS]
    metric = TrimapIou(2, widths=(1, 4))
    result = metric.result(summed(metric, pairs))
    assert list(result) == [
        "trimap_mean_iou_1",
        "trimap_pixel_accuracy_1",
        "trimap_mean_iou_4",
        "trimap_pixel_accuracy_4",
    ]
    for place, width in enumerate((1, 4)):
        (true, missed), (added, found) = sum(
            trimap_counts(example["labels"], prediction["labels"], num_classes=2, widths=(1, 4))
            for example, prediction in pairs
        )[place]
        iou = (true / (true + missed + added) + found / (found + missed + added)) / 2
        assert result[f"trimap_mean_iou_{width}"] == pytest.approx(iou)
        accuracy = (true + found) / (true + missed + added + found)
        assert result[f"trimap_pixel_accuracy_{width}"] == pytest.approx(accuracy)


def test_trimap_scores_without_a_border_are_nan():
    metric = TrimapIou(2, widths=(3,))
    counts = metric.counts(*PAIRS[0])  # ignores nothing
    assert np.isnan(list(metric.result(counts).values())).all()
    assert np.isnan(metric.example_score(counts))


def test_negative_log_likelihood_is_the_mean_over_all_pixels_that_are_not_ignored():
    pairs = [
        (ignoring(example, 0.1 * k), prediction) for k, (example, prediction) in enumerate(PAIRS)
    ]
    logs = [
        -np.log(prediction["probabilities"][y, x, label])
        for example, prediction in pairs
        for (y, x), label in np.ndenumerate(example["labels"])
        if label != 255
    ]
    result = NegativeLogLikelihood().result(summed(NegativeLogLikelihood(), pairs))
    assert result["negative_log_likelihood"] == pytest.approx(np.mean(logs))


def test_negative_log_likelihood_of_nothing_is_nan_and_of_zero_is_finite():
    metric = NegativeLogLikelihood()
    prediction = {"probabilities": np.array([[[1.0, 0.0]]], np.float32)}
    ignored = metric.result(metric.counts({"labels": np.array([[255]], np.uint8)}, prediction))
    assert np.isnan(ignored["negative_log_likelihood"])
    wrong = metric.result(metric.counts({"labels": np.array([[1]], np.uint8)}, prediction))
    assert wrong["negative_log_likelihood"] == pytest.approx(126 * np.log(2))


def test_roc_auc_counts_pixels_in_the_field_of_view_that_are_not_ignored():
    example, prediction = PAIRS[0]
    field_of_view = np.zeros(example["labels"].shape, bool)
    field_of_view[:, 11:] = True
    example = ignoring(example) | {"field_of_view": field_of_view}
    counts = RocAuc().counts(example, prediction)
    labels, scores = example["labels"], prediction["probabilities"][..., 1]
    counted = field_of_view & (labels != 255)
    assert counts["roc"].sum() == counted.sum()
    result = RocAuc().result(counts)
    expected = roc_auc(labels == 1, scores, mask=counted)
    assert result["roc_auc"] == pytest.approx(expected, abs=1e-4)
    assert 0.5 < result["average_precision"] <= 1


def test_em_errors_of_examples_are_those_of_the_stack():
    metric = EmErrors(thresholds=(0.4, 0.6))
    slices = [
        em_counts(example["labels"], prediction["probabilities"][..., 1], thresholds=(0.4, 0.6))
        for example, prediction in PAIRS
    ]
    stack = {name: sum(counts[name] for counts in slices) for name in slices[0]}
    expected = em_errors(stack, thresholds=(0.4, 0.6))
    assert metric.result(summed(metric, PAIRS)) == expected


def test_seg_of_examples_is_that_of_all_their_objects():
    result = CellTracking().result(summed(CellTracking(), PAIRS))
    truth, predicted = stacked(PAIRS, 0, "instances"), stacked(PAIRS, 1, "instances")
    assert result["seg"] == pytest.approx(cell_tracking_seg(truth, predicted))
    assert result["seg_objects"] == sum(len(np.unique(frame)) - 1 for frame in truth)


def test_seg_without_objects_is_nan():
    empty = {"instances": np.zeros((3, 3), np.int32)}
    result = CellTracking().result(CellTracking().counts(empty, empty))
    assert np.isnan(result["seg"])
    assert result["seg_objects"] == 0


def test_bad_input_is_named():
    example, prediction = PAIRS[0]
    del (bare := dict(prediction))["instances"]
    with pytest.raises(ValueError, match='"instances" in the prediction, which has'):
        CellTracking().counts(example, bare)
    cropped = {"probabilities": prediction["probabilities"][:-1]}
    with pytest.raises(ValueError, match=r"labels have shape \(24, 30\) but probabilities \(23"):
        NegativeLogLikelihood().counts(example, cropped)
    with pytest.raises(ValueError, match=r"widths .* found \(0, 1\)"):
        TrimapIou(2, widths=(0, 1))
    with pytest.raises(ValueError, match="found 255"):
        EmErrors().counts(ignoring(example), prediction)
    with pytest.raises(ValueError, match=r"labels .* found \[255\]"):
        NegativeLogLikelihood(ignore_label=7).counts(ignoring(example), prediction)
