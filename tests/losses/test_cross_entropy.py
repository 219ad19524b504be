"""Cross-entropy against loops in float64, and over parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.losses import cross_entropy, mean_valid_pixels, pixel_cross_entropy
from segjax.losses.cross_entropy import softmax_cross_entropy
from segjax.ops.devices import AXIS_NAME

IGNORED = 255
loss_of = jax.jit(cross_entropy)
loss_and_gradient = jax.jit(jax.value_and_grad(cross_entropy))


def random_batch(seed=0, batch=4, height=5, width=6, classes=3):
    """Logits, labels and weights; the images have from none to all of their pixels ignored."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (batch, height, width, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, height, width)).astype(np.int32)
    share = np.linspace(0, 1, batch)[:, None, None]
    labels[rng.random(labels.shape) < share] = IGNORED
    weights = rng.uniform(0, 5, labels.shape).astype(np.float32)
    return logits, labels, weights


def oracle(logits, labels, weights):
    """The weighted mean over the valid pixels of the whole batch, and each pixel's gradient."""
    total, gradient = 0.0, np.zeros(logits.shape)
    count = np.count_nonzero(labels != IGNORED)
    for place, label in np.ndenumerate(labels):
        if label != IGNORED:
            exponentials = np.exp(np.float64(logits[place]))
            probabilities = exponentials / exponentials.sum()
            total -= weights[place] * np.log(probabilities[label])
            gradient[place] = weights[place] * probabilities / count
            gradient[place][label] -= weights[place] / count
    return total / count, gradient


@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_equal_those_of_loops_over_the_pixels(weighted):
    logits, labels, weights = random_batch()
    expected, gradient = oracle(logits, labels, weights if weighted else np.ones_like(weights))
    weights = weights if weighted else None
    found = loss_and_gradient(logits, labels, weights=weights)
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-8)


def test_each_pixel_has_its_own_loss_and_ignored_ones_have_none():
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], np.float32))
    losses = jax.jit(pixel_cross_entropy)(logits, np.array([0, IGNORED, 1], np.uint8))
    np.testing.assert_allclose(losses, [-np.log(0.25), 0, -np.log(0.1)], rtol=1e-6)


def test_without_a_valid_pixel_loss_and_gradient_are_zero():
    logits, labels, weights = random_batch()
    value, gradient = loss_and_gradient(logits, np.full_like(labels, IGNORED), weights=weights)
    assert value == 0
    assert np.all(gradient == 0)


def test_the_loss_does_not_see_the_logits_of_ignored_pixels():
    logits, labels, _ = random_batch()
    changed = logits.copy()
    changed[labels == IGNORED] = 1e30
    loss, gradient = loss_and_gradient(changed, labels)
    assert loss == loss_of(logits, labels)
    assert np.all(gradient[labels == IGNORED] == 0)
    assert np.all(np.any(gradient[labels != IGNORED] != 0, axis=-1))


def test_a_label_that_is_no_class_gives_nan_and_not_a_wrong_number():
    logits, labels, _ = random_batch(classes=3)
    labels[0, 0, 0] = 3
    assert np.isnan(loss_of(logits, labels))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_keep_loss_and_gradient_finite(size):
    logits, labels, _ = random_batch()
    value, gradient = loss_and_gradient(size * np.sign(logits), labels)
    assert np.isfinite(value)
    assert value > 0.1 * size
    assert np.all(np.isfinite(gradient))


def test_weights_do_not_enter_the_normaliser():
    logits, labels, weights = random_batch()
    single = loss_of(logits, labels, weights=weights)
    np.testing.assert_allclose(loss_of(logits, labels, weights=2 * weights), 2 * single, rtol=1e-6)


def test_bfloat16_logits_have_a_float32_loss():
    logits, labels, weights = random_batch()
    rounded = logits.astype(jnp.bfloat16)
    loss = loss_of(rounded, labels, weights=weights)
    assert loss.dtype == jnp.float32
    assert loss == loss_of(rounded.astype(np.float32), labels, weights=weights)


def test_the_mean_over_devices_is_the_loss_of_the_whole_batch():
    logits, labels, weights = random_batch(batch=8)
    assert np.all(labels[-1] == IGNORED)  # so that one device has half a share of valid pixels

    def on_device(logits, labels, weights):
        options = {"weights": weights, "normalizer": mean_valid_pixels(labels)}
        loss, gradient = jax.value_and_grad(cross_entropy)(logits, labels, **options)
        own = jnp.mean(jnp.sum(labels != IGNORED, axis=(1, 2), dtype=jnp.float32))
        own = jnp.broadcast_to(own, labels.shape[:1])
        naive = cross_entropy(logits, labels, weights=weights, normalizer=own)
        return loss, gradient, cross_entropy(logits, labels, weights=weights), naive

    shares = [x.reshape(4, 2, *x.shape[1:]) for x in (logits, labels, weights)]
    losses, gradients, by_default, naive = jax.pmap(on_device, axis_name=AXIS_NAME)(*shares)
    whole, gradient = loss_and_gradient(logits, labels, weights=weights)
    np.testing.assert_allclose(losses.mean(), whole, rtol=1e-6)
    np.testing.assert_allclose(by_default.mean(), whole, rtol=1e-6)
    np.testing.assert_allclose(gradients.reshape(gradient.shape) / 4, gradient, atol=1e-7)
    # A normaliser of each device's own would give another loss.
    assert abs(naive.mean() - whole) > 0.01 * whole


def test_the_mean_over_micro_batches_is_the_loss_of_the_whole_batch():
    logits, labels, weights = random_batch()
    normalizer = mean_valid_pixels(labels)
    parts = [
        loss_of(logits[i], labels[i], weights=weights[i], normalizer=normalizer[i])
        for i in (np.s_[:1], np.s_[1:2], np.s_[2:3], np.s_[3:])
    ]
    whole = loss_of(logits, labels, weights=weights)
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-6)


def test_mean_valid_pixels_by_hand():
    labels = np.zeros((2, 2, 3), np.int32)
    labels[1, 0] = IGNORED
    np.testing.assert_array_equal(mean_valid_pixels(labels), [4.5, 4.5])
    np.testing.assert_array_equal(mean_valid_pixels(labels, ignore_label=0), [1.5, 1.5])


def test_values_are_optaxs_to_the_bit_and_gradients_to_the_last():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 9, (50, 7)).astype(np.float32)
    classes = rng.integers(0, 7, 50)
    functions = (softmax_cross_entropy, optax.losses.softmax_cross_entropy_with_integer_labels)
    for size in (1, 1e4):
        results = [
            jax.jit(jax.value_and_grad(lambda x, f=f: f(x, classes).sum()))(
                np.float32(size) * logits
            )
            for f in functions
        ]
        np.testing.assert_array_equal(*(value for value, _ in results))
        np.testing.assert_allclose(*(gradient for _, gradient in results), atol=6e-8)


def test_a_class_outside_the_logits_gives_nan():
    logits = np.zeros((5, 3), np.float32)
    losses = jax.jit(softmax_cross_entropy)(logits, np.array([-1, 0, 2, 3, 255], np.int32))
    np.testing.assert_array_equal(np.isnan(losses), [True, False, False, True, True])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_pixel_is_gathered_scattered_or_sorted(platform):
    logits, labels, weights = random_batch()
    traced = loss_and_gradient.trace(logits, labels, weights=weights)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.exponential" in program
    assert not any(f"stablehlo.{each}" in program for each in ("gather", "scatter", "sort"))
