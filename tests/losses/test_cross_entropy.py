"""Cross-entropy and focal loss against loops in float64, and over parts of a batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.losses import cross_entropy, mean_valid_pixels, pixel_cross_entropy
from segjax.losses.cross_entropy import softmax_cross_entropy
from segjax.ops.devices import AXIS_NAME

IGNORED = 255
STATIC = ("class_weights", "focal")
loss_of = jax.jit(cross_entropy, static_argnames=STATIC)
loss_and_gradient = jax.jit(jax.value_and_grad(cross_entropy), static_argnames=STATIC)
RARE = {"class_weights": (0.25, 0.0, 3.0)}
OPTIONS = [{}, RARE, {"focal": 2.0}, {"focal": 0.5}, {**RARE, "focal": 1.0}]


def random_batch(seed=0, batch=4, height=5, width=6, classes=3):
    """Logits, labels and weights; the images have from none to all of their pixels ignored."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (batch, height, width, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (batch, height, width)).astype(np.int32)
    share = np.linspace(0, 1, batch)[:, None, None]
    labels[rng.random(labels.shape) < share] = IGNORED
    weights = rng.uniform(0, 5, labels.shape).astype(np.float32)
    return logits, labels, weights


def oracle(logits, labels, weights, class_weights=(1, 1, 1), focal=0.0):
    """The weighted mean over the valid pixels of the whole batch, and each pixel's gradient."""
    total, gradient = 0.0, np.zeros(logits.shape)
    count = np.count_nonzero(labels != IGNORED)
    for place, label in np.ndenumerate(labels):
        if label != IGNORED:
            exponentials = np.exp(np.float64(logits[place]))
            probabilities = exponentials / exponentials.sum()
            p = probabilities[label]
            weight = weights[place] * class_weights[label] / count
            total -= weight * (1 - p) ** focal * np.log(p)
            # The slope in p, times p; the softmax has the slopes p·(1 − p) and −p·q.
            slope = focal * (1 - p) ** (focal - 1) * p * np.log(p) - (1 - p) ** focal
            gradient[place] = -weight * slope * probabilities
            gradient[place][label] += weight * slope
    return total, gradient


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_equal_those_of_loops_over_the_pixels(weighted, options):
    logits, labels, weights = random_batch()
    ones = np.ones_like(weights)
    expected, gradient = oracle(logits, labels, weights if weighted else ones, **options)
    weights = weights if weighted else None
    found = loss_and_gradient(logits, labels, weights=weights, **options)
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-8)


def test_each_pixel_has_its_own_loss_and_ignored_ones_have_none():
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], np.float32))
    losses = jax.jit(pixel_cross_entropy)(logits, np.array([0, IGNORED, 1], np.uint8))
    np.testing.assert_allclose(losses, [-np.log(0.25), 0, -np.log(0.1)], rtol=1e-6)


def test_a_focal_exponent_of_zero_and_class_weights_of_one_change_no_bit():
    logits, labels, _ = random_batch()
    plain = jax.jit(softmax_cross_entropy)(logits, np.where(labels == IGNORED, 0, labels))
    plain = np.where(labels == IGNORED, np.float32(0), plain)
    for weights in (None, (1.0, 1.0, 1.0)):
        loss = jax.jit(partial(pixel_cross_entropy, class_weights=weights, focal=0.0))
        np.testing.assert_array_equal(loss(logits, labels), plain)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_and_its_gradient_are_finite_and_right_for_each_probability(gamma):
    margins = np.array([-1e30, -1e4, -30, -3, 0, 3, 9, 30, 1e4, 1e30], np.float32)

    def losses(margins):
        logits = jnp.stack([margins, jnp.zeros_like(margins)], axis=-1)
        return pixel_cross_entropy(logits, np.zeros(len(margins), np.int32), focal=gamma)

    found, pull = jax.jit(partial(jax.vjp, losses))(margins)
    x = np.float64(margins)
    cross, error = np.logaddexp(0, -x), np.exp(-np.logaddexp(0, x))
    np.testing.assert_allclose(found, error**gamma * cross, rtol=1e-4, atol=1e-6)
    slope = -(error**gamma) * (gamma * (1 - error) * cross + error)
    np.testing.assert_allclose(pull(np.ones_like(found))[0], slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_a_valid_pixel_loss_and_gradient_are_zero(options):
    logits, labels, weights = random_batch()
    labels = np.full_like(labels, IGNORED)
    value, gradient = loss_and_gradient(logits, labels, weights=weights, **options)
    assert value == 0
    assert np.all(gradient == 0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_does_not_see_the_logits_of_ignored_pixels(options):
    logits, labels, _ = random_batch()
    changed = logits.copy()
    changed[labels == IGNORED] = 1e30
    loss, gradient = loss_and_gradient(changed, labels, **options)
    assert loss == loss_of(logits, labels, **options)
    without = [IGNORED] + [c for c, w in enumerate(options.get("class_weights", ())) if w == 0]
    assert np.all(gradient[np.isin(labels, without)] == 0)
    assert np.all(np.any(gradient[~np.isin(labels, without)] != 0, axis=-1))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_label_that_is_no_class_gives_nan_and_not_a_wrong_number(options):
    logits, labels, _ = random_batch(classes=3)
    labels[0, 0, 0] = 3
    assert np.isnan(loss_of(logits, labels, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_keep_loss_and_gradient_finite(size, options):
    logits, labels, _ = random_batch()
    value, gradient = loss_and_gradient(size * np.sign(logits), labels, **options)
    assert np.isfinite(value)
    assert value > 0.1 * size
    assert np.all(np.isfinite(gradient))


def test_weights_do_not_enter_the_normaliser():
    logits, labels, weights = random_batch()
    single = loss_of(logits, labels, weights=weights)
    np.testing.assert_allclose(loss_of(logits, labels, weights=2 * weights), 2 * single, rtol=1e-6)
    doubled = loss_of(logits, labels, weights=weights, class_weights=(2.0, 2.0, 2.0))
    np.testing.assert_allclose(doubled, 2 * single, rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bfloat16_logits_have_a_float32_loss(options):
    logits, labels, weights = random_batch()
    rounded = logits.astype(jnp.bfloat16)
    loss, gradient = loss_and_gradient(rounded, labels, weights=weights, **options)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert loss == loss_of(rounded.astype(np.float32), labels, weights=weights, **options)


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
def test_the_mean_over_devices_is_the_loss_of_the_whole_batch(options):
    logits, labels, weights = random_batch(batch=8)
    assert np.all(labels[-1] == IGNORED)  # so that one device has half a share of valid pixels
    loss_function = partial(cross_entropy, **options)

    def on_device(logits, labels, weights):
        both = {"weights": weights, "normalizer": mean_valid_pixels(labels)}
        loss, gradient = jax.value_and_grad(loss_function)(logits, labels, **both)
        own = jnp.mean(jnp.sum(labels != IGNORED, axis=(1, 2), dtype=jnp.float32))
        own = jnp.broadcast_to(own, labels.shape[:1])
        naive = loss_function(logits, labels, weights=weights, normalizer=own)
        return loss, gradient, loss_function(logits, labels, weights=weights), naive

    shares = [x.reshape(4, 2, *x.shape[1:]) for x in (logits, labels, weights)]
    losses, gradients, by_default, naive = jax.pmap(on_device, axis_name=AXIS_NAME)(*shares)
    whole, gradient = loss_and_gradient(logits, labels, weights=weights, **options)
    np.testing.assert_allclose(losses.mean(), whole, rtol=1e-6)
    np.testing.assert_allclose(by_default.mean(), whole, rtol=1e-6)
    np.testing.assert_allclose(gradients.reshape(gradient.shape) / 4, gradient, atol=1e-7)
    # A normaliser of each device's own would give another loss.
    assert abs(naive.mean() - whole) > 0.01 * whole


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
def test_the_mean_over_micro_batches_is_the_loss_of_the_whole_batch(options):
    logits, labels, weights = random_batch()
    normalizer = mean_valid_pixels(labels)
    parts = [
        loss_of(logits[i], labels[i], weights=weights[i], normalizer=normalizer[i], **options)
        for i in (np.s_[:1], np.s_[1:2], np.s_[2:3], np.s_[3:])
    ]
    whole = loss_of(logits, labels, weights=weights, **options)
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


@pytest.mark.parametrize("options", [{}, OPTIONS[-1]], ids=str)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_pixel_is_gathered_scattered_or_sorted(platform, options):
    logits, labels, weights = random_batch()
    traced = loss_and_gradient.trace(logits, labels, weights=weights, **options)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.exponential" in program
    assert not any(f"stablehlo.{each}" in program for each in ("gather", "scatter", "sort"))
