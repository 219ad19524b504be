import math

import numpy as np
import pytest

from segjax.evaluation.confusion_matrix import confusion_counts
from segjax.evaluation.evaluator import SummingEvaluator
from segjax.evaluation.image_dice import image_dice_counts, image_dice_of_counts
from segjax.evaluation.metrics import Confusion

CLASSES = 4
NAMES = ("dice_per_image", "mean_dice_per_image", "std_dice_per_image", "images_with_dice")


def images(count=9):
    """Labels and predictions of several sizes, in which most classes are missing now and then."""
    rng = np.random.default_rng(0)
    for index in range(count):
        shape = rng.integers(1, 9, 2)
        classes = rng.choice(CLASSES, rng.integers(1, CLASSES), replace=False)
        labels = rng.choice(classes, shape).astype(np.uint8)
        wrong = rng.random(shape) < 0.4
        predicted = np.where(wrong, rng.choice(classes, shape), labels).astype(np.uint8)
        labels[rng.random(shape) < 0.2] = 255
        if index == 2:
            labels[:] = 255  # an image without a pixel that counts
        if index == 5:
            labels[:], predicted[:] = 0, 0  # nothing but background
        yield {"labels": labels}, {"labels": predicted}


def oracle(pairs, background):
    """The definition, one image, one class and one set of pixels at a time."""
    of_class, means = {c: [] for c in range(CLASSES)}, []
    for example, prediction in pairs:
        counted = {tuple(place) for place in np.argwhere(example["labels"] != 255)}
        own = []
        for c in range(CLASSES):
            truth, found = (
                {tuple(place) for place in np.argwhere(arrays["labels"] == c)} & counted
                for arrays in (example, prediction)
            )
            if not truth | found:
                continue
            dice = 2 * len(truth & found) / (len(truth) + len(found))
            of_class[c].append(dice)
            if c != background:
                own.append(dice)
        if own:
            means.append(np.mean(own))
    per_class = [np.mean(values) if values else math.nan for values in of_class.values()]
    return dict(zip(NAMES, (per_class, np.mean(means), np.std(means), len(means)), strict=True))


def evaluated(pairs, background=0):
    evaluator = SummingEvaluator((Confusion(CLASSES, background=background),))
    for number, (example, prediction) in enumerate(pairs):
        evaluator.update({"id": str(number), **example}, prediction)
    return evaluator


@pytest.mark.parametrize("background", [0, 2, None])
def test_scores_are_those_of_a_loop_over_images_classes_and_pixels(background):
    pairs = list(images())
    expected, result = oracle(pairs, background), evaluated(pairs, background).result()
    assert expected["images_with_dice"] < len(pairs)
    for name in NAMES:
        np.testing.assert_allclose(result[name], expected[name], rtol=0, atol=1e-11, err_msg=name)


def test_order_and_division_over_processes_change_no_bit():
    pairs = list(images())
    whole = evaluated(pairs).result()
    for cut in (0, 4, len(pairs)):
        parts = evaluated(pairs[cut:][::-1])
        parts.merge(evaluated(pairs[:cut]).state())
        assert all(parts.result()[name] == whole[name] for name in NAMES)


def test_every_image_counts_the_same_whatever_its_size():
    """Hand-computed: Dice 1 in 100 pixels, and 2 · 1 / (2 + 4) in 6."""
    matrices = [np.array([[0, 0], [0, 100]]), np.array([[1, 3], [1, 1]])]
    parts = [image_dice_counts(matrix, background=0) for matrix in matrices]
    result = image_dice_of_counts({name: parts[0][name] + parts[1][name] for name in parts[0]})
    np.testing.assert_allclose(result["dice_per_image"], [1 / 3, 2 / 3], atol=1e-12)
    assert result["mean_dice_per_image"] == pytest.approx(2 / 3, abs=1e-12)
    assert result["std_dice_per_image"] == pytest.approx(1 / 3, abs=1e-12)
    assert result["images_with_dice"] == 2


def test_a_class_that_is_only_predicted_has_0_and_one_in_neither_is_left_out():
    counts = image_dice_counts(np.array([[5, 2, 0], [0, 0, 0], [0, 0, 0]]), background=0)
    result = image_dice_of_counts(counts)
    np.testing.assert_allclose(result["dice_per_image"], [10 / 12, 0, math.nan], atol=1e-12)
    assert result["mean_dice_per_image"] == 0


def test_equal_images_have_no_spread_and_none_have_no_score():
    matrix = confusion_counts(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=2)
    counts = image_dice_counts(matrix, background=0)
    many = image_dice_of_counts({name: 1_000_003 * value for name, value in counts.items()})
    assert many["std_dice_per_image"] == 0
    assert many["mean_dice_per_image"] == pytest.approx(4 / 5, abs=1e-12)
    empty = image_dice_of_counts(image_dice_counts(np.zeros((2, 2), np.int64), background=0))
    assert empty["images_with_dice"] == 0
    assert np.isnan([*empty["dice_per_image"], empty["mean_dice_per_image"]]).all()
    assert math.isnan(empty["std_dice_per_image"])
