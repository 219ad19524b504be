import numpy as np
import pytest

from segjax.evaluation.test_time_augmentation import (
    View,
    augment,
    average_probabilities,
    restore,
    rotations_and_flips,
    seven_rotated_versions,
)

IMAGE = np.random.default_rng(0).normal(size=(6, 9, 2))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def averaged(predict, image, views):
    return average_probabilities((predict(augment(image, view)) for view in views), views)


def isotropic(image):
    """Probabilities from each pixel and its four neighbours alike: turns with its input."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return softmax(image - 0.3 * neighbours)


def anisotropic(image):
    """Probabilities that depend on where in the array a pixel is."""
    rows, columns = np.indices(image.shape[:2])[..., None] / 10
    return softmax(image * (1 + rows) + [0, 1] * columns)


def test_the_eight_views_by_hand():
    image = np.array([[1, 2, 3], [4, 5, 6]])
    seen = [augment(image, view).tolist() for view in rotations_and_flips()]
    assert seen == [
        [[1, 2, 3], [4, 5, 6]],
        [[3, 6], [2, 5], [1, 4]],
        [[6, 5, 4], [3, 2, 1]],
        [[4, 1], [5, 2], [6, 3]],
        [[3, 2, 1], [6, 5, 4]],
        [[1, 4], [2, 5], [3, 6]],
        [[4, 5, 6], [1, 2, 3]],
        [[6, 3], [5, 2], [4, 1]],
    ]


def test_the_views_are_a_group():
    image = np.arange(6).reshape(2, 3)
    elements = {augment(image, view).tobytes() for view in rotations_and_flips()}
    assert len(elements) == 8
    for first in rotations_and_flips():
        for second in rotations_and_flips():
            assert augment(augment(image, first), second).tobytes() in elements


def test_seven_views_leave_out_the_image_itself():
    assert set(rotations_and_flips()) - set(seven_rotated_versions()) == {View()}
    assert len(seven_rotated_versions()) == 7


@pytest.mark.parametrize("view", rotations_and_flips())
@pytest.mark.parametrize("shape", [(6, 9, 2), (5, 1), (1, 1, 3)])
def test_restore_inverts_augment_bit_for_bit(view, shape):
    image = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    np.testing.assert_array_equal(restore(augment(image, view), view), image)
    np.testing.assert_array_equal(augment(restore(image, view), view), image)


@pytest.mark.parametrize("views", [rotations_and_flips(), seven_rotated_versions()])
def test_averaging_an_equivariant_predictor_changes_nothing(views):
    np.testing.assert_allclose(averaged(isotropic, IMAGE, views), isotropic(IMAGE), rtol=1e-12)


@pytest.mark.parametrize("view", rotations_and_flips())
def test_averaging_over_all_eight_makes_any_predictor_equivariant(view):
    eight = rotations_and_flips()
    upright, turned = averaged(anisotropic, IMAGE, eight), anisotropic(augment(IMAGE, view))
    np.testing.assert_allclose(
        averaged(anisotropic, augment(IMAGE, view), eight), augment(upright, view), rtol=1e-12
    )
    assert np.abs(turned - augment(upright, view)).max() > 0.01


def test_probabilities_are_averaged_and_not_logits():
    views = (View(), View(flip=True))
    confident, opposed = [0.98, 0.02], [0.3, 0.7]
    predictions = [np.full((2, 3, 2), confident), np.full((2, 3, 2), opposed)]
    mean = average_probabilities(predictions, views)
    np.testing.assert_allclose(mean, np.full((2, 3, 2), [0.64, 0.36]))


def test_the_mean_of_half_precision_is_computed_in_single():
    mean = average_probabilities([np.full((1, 1), 0.1, np.float16)] * 8, rotations_and_flips())
    assert mean.dtype == np.float32
    assert mean[0, 0] == np.float32(np.float16(0.1))


def test_predictions_that_cannot_be_averaged_are_refused():
    two = (View(), View(quarter_turns=1))
    half = np.full((2, 3, 2), 0.5)
    with pytest.raises(ValueError, match=r"values from -3\.0 to 0\.5: apply softmax"):
        average_probabilities([half * [1, -6]], two[:1])
    with pytest.raises(ValueError, match="from nan"):
        average_probabilities([half * np.nan], two[:1])
    with pytest.raises(ValueError, match=r"\(3, 2, 2\) from View.* beside \(2, 3, 2\)"):
        average_probabilities([half, half], two)
    with pytest.raises(ValueError, match="2 views, found fewer"):
        average_probabilities([half], two)
    with pytest.raises(ValueError, match="1 views, found more"):
        average_probabilities([half, half], two[:1])
    with pytest.raises(ValueError, match="found none"):
        average_probabilities([], ())
    with pytest.raises(ValueError, match="found 4"):
        View(quarter_turns=4)
