import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.losses.detection import (
    box_loss,
    class_loss,
    mask_loss,
    objectness_loss,
    smooth_l1,
    softmax_mask_loss,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def cross_entropy(logits, label):
    """Of one softmax, in float64."""
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum()) - logits[label]


def binary(logit, target):
    p = 1 / (1 + np.exp(-np.float64(logit)))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_is_quadratic_within_beta_and_linear_beyond(beta):
    values = np.array([-3, -1, -0.5, -0.05, 0, 0.05, 0.5, 1, 3], np.float32)
    expected = [
        0.5 * v**2 / beta if beta and abs(v) < beta else abs(v) - 0.5 * beta
        for v in values.astype(float)
    ]
    np.testing.assert_allclose(smooth_l1(values, beta=beta), expected, rtol=1e-6)
    gradient = jax.grad(lambda v: smooth_l1(v, beta=beta).sum())(jnp.asarray(values))
    assert np.isfinite(gradient).all()
    limits = np.sign(values) if beta == 0 else np.clip(values / beta, -1, 1)
    np.testing.assert_allclose(gradient[values != 0], limits[values != 0], rtol=1e-5)


def test_smooth_l1_has_one_value_and_one_slope_at_beta():
    value, slope = jax.value_and_grad(lambda v: smooth_l1(v, beta=0.5))(0.5)
    below, slope_below = jax.value_and_grad(lambda v: smooth_l1(v, beta=0.5))(0.4999999)
    assert value == pytest.approx(0.25) == pytest.approx(below)
    assert slope == pytest.approx(1) == pytest.approx(slope_below)


def test_objectness_is_a_binary_cross_entropy_over_valid_anchors():
    logits = normal(2, 5)
    positive, valid = RNG.random((2, 5)) < 0.5, np.arange(10).reshape(2, 5) % 3 > 0
    found = objectness_loss(logits, positive, valid, normalizer=7.0)
    expected = sum(binary(logits[i], positive[i]) for i in np.ndindex(2, 5) if valid[i]) / 7
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_box_loss_sums_over_positive_boxes_and_their_four_deltas():
    deltas, targets = normal(2, 3, 4), normal(2, 3, 4)
    positive = np.array([[True, False, True], [False, False, True]])
    found = box_loss(deltas, targets, positive, beta=0.0, normalizer=5.0)
    assert found == pytest.approx(np.abs(deltas - targets)[positive].sum() / 5, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("target", [np.inf, -np.inf, np.nan])
def test_a_target_of_nothing_changes_neither_the_box_loss_nor_its_gradient(beta, target):
    deltas, positive = normal(3, 4), np.array([True, False, True])

    def run(targets):
        return jax.value_and_grad(
            lambda deltas: box_loss(deltas, targets, positive, beta=beta, normalizer=2.0)
        )(deltas)

    targets = normal(3, 4)
    expected, gradient = run(targets)
    targets[1] = target
    found, found_gradient = run(targets)
    assert found == expected
    assert np.isfinite(found)
    np.testing.assert_array_equal(found_gradient, gradient)
    assert not found_gradient[1].any()
    assert found_gradient[0].all()


def test_the_class_loss_is_a_cross_entropy_over_valid_regions():
    logits, classes = normal(2, 4, 3), RNG.integers(0, 3, (2, 4)).astype(np.int32)
    valid = np.arange(8).reshape(2, 4) % 3 > 0
    found = class_loss(logits, classes, valid, normalizer=6.0)
    expected = sum(cross_entropy(logits[i], classes[i]) for i in np.ndindex(2, 4) if valid[i]) / 6
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_mask_loss_is_the_mean_over_the_pixels_of_positive_regions():
    logits, targets = normal(1, 3, 2, 2), RNG.random((1, 3, 2, 2)).astype(np.float32)
    positive = np.array([[True, False, True]])
    found = mask_loss(logits, targets, positive, normalizer=2.0)
    expected = sum(
        binary(logits[0, region, i, j], targets[0, region, i, j]) / 4 / 2
        for region in (0, 2)
        for i, j in np.ndindex(2, 2)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_softmax_mask_loss_asks_for_the_regions_class_inside_and_the_background_outside():
    logits = normal(1, 3, 2, 2, 4)
    targets = np.array([[0.5, 0.49], [1, 0]], np.float32) * np.ones((1, 3, 1, 1), np.float32)
    classes, positive = np.array([[3, 2, 1]], np.int32), np.array([[True, False, True]])
    found = softmax_mask_loss(logits, targets, classes, positive, normalizer=2.0)
    expected = sum(
        cross_entropy(logits[0, region, i, j], label if (i, j) in ((0, 0), (1, 0)) else 0) / 4 / 2
        for region, label in ((0, 3), (2, 1))
        for i, j in np.ndindex(2, 2)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_anything_valid_every_loss_and_gradient_is_zero():
    none, classes = np.zeros((1, 2), bool), np.zeros((1, 2), np.int32)

    def losses(x):
        vector, targets = x[..., 0, 0, :], 0 * x[..., 0]
        return (
            objectness_loss(vector[..., 0], none, none, normalizer=1.0),
            box_loss(vector, 1 - vector, none, beta=0.0, normalizer=1.0),
            class_loss(vector, classes, none, normalizer=1.0),
            mask_loss(x[..., 0], targets, none, normalizer=1.0),
            softmax_mask_loss(x, targets, classes, none, normalizer=1.0),
        )

    x = normal(1, 2, 2, 2, 4)
    assert jax.jit(losses)(x) == (0, 0, 0, 0, 0)
    assert not any(gradient.any() for gradient in jax.jit(jax.jacrev(losses))(x))
