import itertools

import numpy as np
import pytest

from segjax.inference.resizing import ShortSide
from segjax.inference.views import (
    View,
    augment,
    augmented_size,
    average_probabilities,
    restore,
    rotations_and_flips,
    scales_and_flips,
    seven_rotated_versions,
)

IMAGE = np.random.default_rng(0).normal(size=(6, 9, 2))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def averaged(predict, image, views):
    predictions = (predict(augment(image, view)) for view in views)
    return average_probabilities(predictions, views, image.shape[:2])


def isotropic(image):
    """Probabilities from each pixel and its four neighbours alike: they turn with the input."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return softmax(image - 0.3 * neighbours)


def anisotropic(image):
    """Probabilities that depend on a pixel's place in the array."""
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
    seen = augment(image, view)
    assert np.shares_memory(seen, image)
    np.testing.assert_array_equal(restore(seen, view, shape[:2]), image)


def test_each_of_the_papers_scales_comes_upright_and_flipped():
    views = scales_and_flips()
    assert [(view.scale, view.flip) for view in views] == [
        (scale, flip) for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75) for flip in (False, True)
    ]
    assert {view.quarter_turns for view in views} == {0}
    assert scales_and_flips((1.0, 2.0), flip=False) == (View(), View(scale=2.0))


MIXED = (*scales_and_flips((0.3, 0.5, 1.75)), View(True, 1, 0.75), View(False, 3, 2.0))


@pytest.mark.parametrize("view", MIXED, ids=str)
@pytest.mark.parametrize("size", [(60, 91), (7, 33), (1, 1)])
def test_the_size_of_what_a_view_shows_is_known_beforehand(view, size):
    assert augment(np.zeros((*size, 2), np.float32), view).shape == (*augmented_size(size, view), 2)


def test_the_image_is_enlarged_by_the_scale_before_it_is_flipped_and_turned():
    image = np.float32([[1, 2]])
    enlarged = np.float32([[1, 1.25, 1.75, 2]] * 2)
    np.testing.assert_array_equal(augment(image, View(scale=2.0)), enlarged)
    np.testing.assert_array_equal(augment(image, View(True, scale=2.0)), enlarged[:, ::-1])
    np.testing.assert_array_equal(augment(image, View(True, 1, 2.0)), enlarged.T)
    assert augmented_size((1, 2), View(True, 1, 2.0)) == (4, 2)


def test_an_image_of_another_size_is_interpolated_once():
    image = np.random.default_rng(0).random((12, 16, 3), np.float32)
    seen = augment(image, View(scale=0.5), size=(24, 32))
    np.testing.assert_array_equal(seen, image)
    assert augment(image, View(scale=0.75), size=(24, 32)).shape == (18, 24, 3)


@pytest.mark.parametrize("view", MIXED, ids=str)
def test_restore_inverts_augment_where_there_is_nothing_to_lose(view):
    rows, columns = np.indices((60, 90), np.float32)
    ramps = np.stack([rows, columns, np.full_like(rows, 7)], -1)
    restored = restore(augment(ramps, view), view, (60, 90))
    inner = np.s_[4:-4, 4:-4]  # the ramps are flat within half a pixel of the border
    # The mean over fractional pixels lies slightly off the middle of their area.
    atol = 0.15 if view.scale < 0.5 else 1e-3
    np.testing.assert_allclose(restored[inner], ramps[inner], atol=atol)


@pytest.mark.parametrize("rule", [None, (117, 176), (40, 60)])
def test_averaging_over_scales_keeps_a_pixelwise_predictor_of_a_flat_image(rule):
    image = np.full((60, 90, 2), [0.3, 1.2], np.float32)
    views = MIXED
    predictions = (softmax(augment(image, view, size=rule)) for view in views)
    averaged = average_probabilities(predictions, views, (60, 90))
    np.testing.assert_allclose(averaged, softmax(image), rtol=1e-5)


def test_no_rounding_of_a_size_is_mistaken_for_other_proportions():
    for size in itertools.product((1, 2, 7, 30), (1, 3, 8, 33)):
        for side, view in itertools.product((3, 10, 27), MIXED):
            seen = augmented_size(ShortSide(side)(size), view)
            assert restore(np.zeros(seen, np.float32), view, size).shape == size


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
    mean = average_probabilities(predictions, views, (2, 3))
    np.testing.assert_allclose(mean, np.full((2, 3, 2), [0.64, 0.36]))


def test_the_mean_of_half_precision_is_computed_in_single():
    tenths = [np.full((1, 1), 0.1, np.float16)] * 8
    mean = average_probabilities(tenths, rotations_and_flips(), (1, 1))
    assert mean.dtype == np.float32
    assert mean[0, 0] == np.float32(np.float16(0.1))


@pytest.mark.parametrize("views", [(View(flip=True),), rotations_and_flips()], ids=len)
def test_predictions_are_not_written_into(views):
    predictions = [softmax(np.ones((4, 4, 2))) for _ in views]
    for prediction in predictions:
        prediction.flags.writeable = False
    mean = average_probabilities(predictions, views, (4, 4))
    np.testing.assert_array_equal(mean, np.full((4, 4, 2), 0.5))
    assert np.shares_memory(mean, predictions[0]) == (len(views) == 1)


def test_predictions_that_cannot_be_averaged_are_refused():
    two, size = (View(), View(quarter_turns=1)), (20, 30)
    half = np.full((20, 30, 2), 0.5)
    with pytest.raises(ValueError, match=r"values from -3\.0 to 0\.5: apply softmax"):
        average_probabilities([half * [1, -6]], two[:1], size)
    with pytest.raises(ValueError, match="from nan"):
        average_probabilities([half * np.nan], two[:1], size)
    with pytest.raises(
        ValueError, match=r"\(20, 30, 2\) from View.* of an image of 20 × 30 pixels"
    ):
        average_probabilities([half, half], two, size)
    with pytest.raises(ValueError, match=r"\(20, 30, 1\) from View.* beside \(20, 30, 2\)"):
        average_probabilities([half, half[..., :1]], (View(), View(True)), size)
    with pytest.raises(ValueError, match="2 views, found fewer"):
        average_probabilities([half], two, size)
    with pytest.raises(ValueError, match="1 views, found more"):
        average_probabilities([half, half], two[:1], size)
    with pytest.raises(ValueError, match="found none"):
        average_probabilities([], (), size)
    with pytest.raises(ValueError, match="found 4"):
        View(quarter_turns=4)
    with pytest.raises(ValueError, match="scale must be positive, found 0"):
        View(scale=0)
