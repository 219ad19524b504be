import numpy as np
import pytest

from segjax.evaluation.confusion_matrix import (
    ConfusionMatrix,
    confusion_counts,
    contingency_table,
    scores,
)


def random_labels(seed, shape=(6, 7), num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = 255
    return labels, rng.integers(0, num_classes, shape).astype(np.uint8)


def test_counts_agree_with_a_loop_over_pixels():
    labels, predictions = random_labels(0)
    expected = np.zeros((4, 4), int)
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label != 255:
            expected[label, prediction] += 1
    counts = confusion_counts(labels, predictions, num_classes=4)
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype == np.int64


def test_hand_computed_scores_of_two_classes():
    # 5 background kept, 1 background taken for foreground, 2 foreground missed, 4 found.
    result = scores(np.array([[5, 1], [2, 4]]), background=0)
    np.testing.assert_allclose(result["iou"], [5 / 8, 4 / 7])
    np.testing.assert_allclose(result["dice"], [10 / 13, 8 / 11])
    np.testing.assert_allclose(result["precision"], [5 / 7, 4 / 5])
    np.testing.assert_allclose(result["recall"], [5 / 6, 4 / 6])
    np.testing.assert_array_equal(result["support"], [6, 6])
    assert result["foreground_iou"] == pytest.approx(4 / 7)
    assert result["foreground_dice"] == pytest.approx(8 / 11)
    assert result["mean_iou"] == pytest.approx((5 / 8 + 4 / 7) / 2)
    assert result["mean_dice"] == pytest.approx((10 / 13 + 8 / 11) / 2)
    assert result["pixel_accuracy"] == pytest.approx(9 / 12)
    assert result["mean_accuracy"] == pytest.approx((5 / 6 + 4 / 6) / 2)
    assert result["frequency_weighted_iou"] == pytest.approx((5 / 8 + 4 / 7) / 2)
    assert result["absent_classes"] == []


def test_means_without_background_leave_out_class_0():
    result = scores(np.array([[9, 0, 1], [2, 3, 0], [0, 0, 4]]), background=0)
    assert result["mean_iou_without_background"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert result["mean_dice_without_background"] == pytest.approx((6 / 8 + 8 / 9) / 2)
    weighted = (10 * 9 / 12 + 5 * 3 / 5 + 4 * 4 / 5) / 19
    assert result["frequency_weighted_iou"] == pytest.approx(weighted)
    assert "foreground_iou" not in result


def test_the_background_may_be_any_class():
    result = scores(np.array([[9, 0, 1], [2, 3, 0], [0, 0, 4]]), background=2)
    assert result["mean_iou_without_background"] == pytest.approx((9 / 12 + 3 / 5) / 2)
    assert scores(np.array([[5, 1], [2, 4]]), background=1)["foreground_iou"] == 5 / 8


def test_without_a_background_no_score_leaves_a_class_out_and_the_others_stay():
    matrix = np.array([[5, 1], [2, 4]])
    plain, others = scores(matrix), scores(matrix, background=0)
    added = {f"{kind}_{score}" for kind in ("foreground",) for score in ("iou", "dice")}
    added |= {"mean_iou_without_background", "mean_dice_without_background"}
    assert set(others) - set(plain) == added
    assert all(np.array_equal(plain[name], others[name]) for name in plain)


def test_class_absent_from_labels_and_predictions_is_nan_and_in_no_mean():
    result = scores(np.array([[4, 0, 0], [0, 0, 0], [2, 0, 2]]), background=0)
    assert result["absent_classes"] == [1]
    for name in ("iou", "dice", "precision", "recall"):
        assert np.isnan(result[name]).tolist() == [False, True, False]
    assert result["mean_iou"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert result["mean_iou_without_background"] == pytest.approx(2 / 4)
    assert result["mean_accuracy"] == pytest.approx((1 + 2 / 4) / 2)


def test_class_only_predicted_counts_as_zero_but_not_in_mean_accuracy():
    result = scores(np.array([[3, 1], [0, 0]]))
    assert result["absent_classes"] == []
    assert result["iou"][1] == result["dice"][1] == result["precision"][1] == 0
    assert np.isnan(result["recall"][1])
    assert result["mean_iou"] == pytest.approx(3 / 4 / 2)
    assert result["mean_accuracy"] == pytest.approx(3 / 4)


def test_class_never_predicted_has_no_precision():
    result = scores(np.array([[3, 0], [1, 0]]))
    assert np.isnan(result["precision"][1])
    assert result["iou"][1] == result["recall"][1] == 0


def test_perfect_prediction_scores_one_everywhere():
    labels, _ = random_labels(1)
    matrix = ConfusionMatrix(4)
    matrix.update(labels, labels)
    result = matrix.result()
    for name in ("mean_iou", "mean_dice", "pixel_accuracy", "mean_accuracy"):
        assert result[name] == 1
    assert result["frequency_weighted_iou"] == pytest.approx(1)


@pytest.mark.parametrize("labels", [np.zeros((0, 3), int), np.full((2, 3), 255)])
def test_nothing_counted_is_nan_throughout(labels):
    matrix = ConfusionMatrix(3)
    matrix.update(labels, np.zeros_like(labels))
    result = matrix.result()
    assert np.isnan(result["iou"]).all()
    assert np.isnan([result["mean_iou"], result["mean_dice"], result["pixel_accuracy"]]).all()
    assert np.isnan([result["mean_accuracy"], result["frequency_weighted_iou"]]).all()
    assert result["absent_classes"] == [0, 1, 2]


def test_updates_and_merges_equal_the_whole_set_at_once():
    images = [random_labels(seed) for seed in range(4)]
    whole, first, second = (ConfusionMatrix(4) for _ in range(3))
    whole.update(*(np.stack(arrays) for arrays in zip(*images, strict=True)))
    first.update(*images[0])
    for image in images[1:]:
        second.update(*image)
    first.merge(second)
    np.testing.assert_array_equal(first.counts, whole.counts)
    assert first.result()["mean_iou"] == whole.result()["mean_iou"]


def test_score_of_a_set_is_not_the_mean_of_its_images():
    matrix = ConfusionMatrix(2, background=0)
    matrix.update(np.array([1, 0, 0, 0]), np.array([0, 0, 0, 0]))  # foreground IoU 0
    matrix.update(np.array([1, 1, 1, 1]), np.array([1, 1, 1, 1]))  # foreground IoU 1
    assert matrix.result()["foreground_iou"] == pytest.approx(4 / 5)


def test_counts_beyond_32_bits_do_not_overflow():
    matrix = ConfusionMatrix(2)
    matrix.counts[:] = 2**40
    matrix.merge(matrix)
    matrix.update(np.array([0]), np.array([1]))
    np.testing.assert_array_equal(matrix.counts, [[2**41, 2**41 + 1], [2**41, 2**41]])
    assert matrix.result()["mean_iou"] == pytest.approx(1 / 3)
    assert matrix.result()["mean_dice"] == pytest.approx(1 / 2)


def test_any_integer_type_shape_and_ignore_label():
    counts = confusion_counts(
        np.array([[[True, False]]]), np.array([[[1, 0]]], np.int8), num_classes=2, ignore_label=0
    )
    np.testing.assert_array_equal(counts, [[0, 0], [0, 1]])


def test_prediction_at_an_ignored_pixel_may_be_anything():
    counts = confusion_counts(np.array([255, 1]), np.array([255, 1]), num_classes=2)
    np.testing.assert_array_equal(counts, [[0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 7], [0, 1], r"labels must be in \[0, 3\) or 255 \(ignored\), found \[7\]"),
        ([0, -1], [0, 1], r"labels .* found \[-1\]"),
        ([0, 1], [0, 3], r"predictions must be in \[0, 3\), found \[3\]"),
        ([0, 1], [0, 255], r"predictions .* found \[255\]"),
        ([0.0, 1.0], [0, 1], "integers, not float64"),
        ([0, 1], [0.0, 1.0], "integers, not float64"),
        ([0, 1], [[0, 1]], r"shape \(2,\) but predictions have \(1, 2\)"),
    ],
)
def test_bad_values_are_named(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(np.array(labels), np.array(predictions), num_classes=3)


def test_matrices_that_differ_do_not_merge():
    with pytest.raises(ValueError, match="num_classes=3, ignore_label=255 into one of num_cl"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
    with pytest.raises(ValueError, match="at least 1"):
        ConfusionMatrix(0)


def test_contingency_table_agrees_with_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (8, 9)), rng.integers(0, 3, (8, 9)).astype(np.int32)
    expected = np.zeros((5, 3), int)
    for pair in zip(truth.flat, predicted.flat, strict=True):
        expected[pair] += 1
    table = contingency_table(truth, predicted)
    np.testing.assert_array_equal(table.toarray(), expected)
    assert table.dtype == np.int64


def test_contingency_table_rejects_ids_that_are_none():
    with pytest.raises(ValueError, match=r"predicted ids must be at least 0 \(background\), found"):
        contingency_table(np.array([1]), np.array([-2]))
    with pytest.raises(ValueError, match="true ids must be integers, not float64"):
        contingency_table(np.array([1.0]), np.array([1]))
    with pytest.raises(ValueError, match=r"shape \(1,\) but predicted ids have \(2,\)"):
        contingency_table(np.array([1]), np.array([1, 2]))
