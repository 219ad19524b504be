"""The soft Dice loss against cases computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.losses import dice_loss
from segjax.ops.devices import AXIS_NAME

IGNORED = 255
OPTIONS = ("over", "without", "smooth")
loss_of = jax.jit(dice_loss, static_argnames=OPTIONS)
loss_and_gradient = jax.jit(jax.value_and_grad(dice_loss), static_argnames=OPTIONS)
CELL = np.array([[0.8, 0.4], [0.1, 0.3]], np.float32)  # probability of class 1 of one image
LABELS = np.array([[1, 1], [0, 0]], np.int32)


def logits_of(cell):
    """Two-class logits whose softmax gives class 1 these probabilities."""
    return np.log(np.stack([1 - cell, cell], axis=-1, dtype=np.float32))


def random_batch(seed=0, batch=8, classes=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (batch, 5, 6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, 5, 6)).astype(np.int32)
    labels[rng.random(labels.shape) < np.linspace(0, 1, batch)[:, None, None]] = IGNORED
    return logits, labels


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Class 1: intersection 0.8 + 0.4, sums 1.6 and 2. Class 0: 0.9 + 0.7, 2.4 and 2.
        ({"without": 0}, 1 - 2.4 / 3.6),
        ({"without": 1}, 1 - 3.2 / 4.4),
        ({}, 1 - (2.4 / 3.6 + 3.2 / 4.4) / 2),
        ({"without": 0, "smooth": 1.0}, 1 - 3.4 / 4.6),
    ],
)
def test_one_image_by_hand(over, options, expected):
    loss = loss_of(logits_of(CELL)[None], LABELS[None], over=over, **options)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_ignored_pixels_enter_no_sum_and_get_no_gradient():
    labels = LABELS.copy()
    labels[0, 1] = IGNORED
    loss, gradient = loss_and_gradient(logits_of(CELL)[None], labels[None], without=0)
    np.testing.assert_allclose(loss, 1 - 1.6 / (1.2 + 1), rtol=1e-5)
    assert np.all(gradient[0, 0, 1] == 0)
    assert np.all(gradient[0][labels != IGNORED] != 0)


def test_over_the_batch_the_sums_are_taken_before_the_ratio():
    cells = np.stack([CELL, np.full((2, 2), 0.1, np.float32)])
    labels = np.stack([LABELS, np.array([[0, 0], [0, 1]], np.int32)])
    found = {
        over: loss_of(logits_of(cells), labels, over=over, without=0)
        for over in ("sample", "batch")
    }
    np.testing.assert_allclose(found["sample"], 1 - (2.4 / 3.6 + 0.2 / 1.4) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["batch"], 1 - (2.4 + 0.2) / (3.6 + 1.4), rtol=1e-5)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("without", [None, 0, 2])
def test_a_perfect_prediction_has_loss_zero(over, without):
    _, labels = random_batch()
    logits = 60 * np.eye(3, dtype=np.float32)[np.where(labels == IGNORED, 0, labels)]
    np.testing.assert_allclose(loss_of(logits, labels, over=over, without=without), 0, atol=1e-6)


def test_a_class_neither_labelled_nor_predicted_scores_one_and_a_predicted_one_zero():
    labels = np.zeros((1, 4, 4), np.int32)
    nothing, everything = (np.full((1, 4, 4), p, np.float32) for p in (1e-12, 1 - 1e-6))
    np.testing.assert_allclose(loss_of(logits_of(nothing), labels, without=0), 0, atol=1e-4)
    np.testing.assert_allclose(loss_of(logits_of(everything), labels, without=0), 1, atol=1e-4)


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_without_a_valid_pixel_loss_and_gradient_are_zero(over):
    logits, labels = random_batch()
    labels[:] = IGNORED
    loss, gradient = loss_and_gradient(logits, labels, over=over)
    np.testing.assert_allclose(loss, 0, atol=1e-7)
    assert np.all(gradient == 0)


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_value_and_gradient_over_four_devices_are_those_of_the_whole_batch(over):
    logits, labels = random_batch()

    def on_one(scale, logits, labels):
        def loss(scale):
            return dice_loss(scale * logits, labels, over=over, without=0)

        return jax.value_and_grad(loss)(scale)

    def on_four(scale, logits, labels):
        found = on_one(scale, logits, labels)
        return jax.lax.pmean(found, "devices")

    scale = np.array([0.5, 1, 2], np.float32).reshape(1, 1, 1, 3)
    shares = (x.reshape(4, 2, *x.shape[1:]) for x in (logits, labels))
    loss, gradient = jax.pmap(on_four, axis_name=AXIS_NAME, in_axes=(None, 0, 0), out_axes=None)(
        scale, *shares
    )
    whole, whole_gradient = jax.jit(on_one)(scale, logits, labels)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-5, atol=1e-7)


def test_bfloat16_logits_have_a_float32_loss():
    logits, labels = random_batch()
    rounded = logits.astype(jnp.bfloat16)
    loss = loss_of(rounded, labels)
    assert loss.dtype == jnp.float32
    assert loss == loss_of(rounded.astype(np.float32), labels)


def test_sums_over_anything_else_are_refused():
    logits, labels = random_batch()
    with pytest.raises(ValueError, match="over='image'; expected 'sample' or 'batch'"):
        dice_loss(logits, labels, over="image")
