"""The fully connected CRF against brute force over all pairs of pixels, and against pydensecrf."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.dense_crf import (
    CrfConfig,
    dense_crf,
    gaussian_filter,
    mean_field,
    normalizers,
    refine_probabilities,
)

# Kernels as small as the images.
SMALL = CrfConfig(position_sigma=8.0, color_sigma=20.0, smoothness_sigma=1.5, num_iterations=5)
NORMALIZATIONS = ("symmetric", "per_pixel", "none")


def scene(height=16, width=20, channels=3, classes=3):
    """Two colours with noise, and logits that are wrong for some pixels of either."""
    rng = np.random.default_rng(0)
    right = np.mgrid[:height, :width][1] > width // 2 + 2
    image = (60 + 110 * right)[..., None] + rng.normal(0, 8, (height, width, channels))
    logits = rng.normal(0, 0.7, (height, width, classes))
    logits[..., 0] += 1.2 * ~right
    logits[..., 1] += 1.2 * right
    return logits.astype(np.float32), np.clip(image, 0, 255).astype(np.uint8), right


def exact_kernels(image, config):
    """The appearance and the smoothness kernel between all pairs of pixels."""
    height, width = image.shape[:2]
    position = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
    color = image.reshape(-1, image.shape[2]).astype(np.float64)

    def squared(x):
        return ((x[:, None] - x) ** 2).sum(axis=-1)

    appearance = squared(position) / config.position_sigma**2
    appearance = appearance + squared(color) / config.color_sigma**2
    return [
        np.exp(-0.5 * squares)
        for squares in (appearance, squared(position) / config.smoothness_sigma**2)
    ]


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def brute_force(logits, kernels, config):
    """Mean field in float64, with the Potts penalty as the paper writes it."""
    unary = -logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    potts = 1 - np.eye(logits.shape[-1])
    weighted = []
    for weight, kernel in zip(
        (config.appearance_weight, config.smoothness_weight), kernels, strict=True
    ):
        total = kernel.sum(axis=1)
        if config.normalization == "symmetric":
            kernel = kernel / np.sqrt(np.outer(total, total))
        elif config.normalization == "per_pixel":
            kernel = kernel / total[:, None]
        weighted.append(weight * kernel)
    q = softmax(-unary)
    for _ in range(config.num_iterations):
        q = softmax(-unary - sum(weighted) @ q @ potts)
    return q.reshape(logits.shape)


def plain(logits, image, config=SMALL, **options):
    return np.asarray(dense_crf(logits, image, **options, **dataclasses.asdict(config)))


@partial(jax.jit, static_argnames="capacity")
def traced(logits, image, capacity=None):
    return dense_crf(logits, image, capacity=capacity, **dataclasses.asdict(SMALL))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_mean_field_with_exact_kernels_equals_brute_force(normalization):
    logits, image, _ = scene()
    config = dataclasses.replace(SMALL, normalization=normalization)
    if normalization == "none":  # whose messages would else drown the logits
        config = dataclasses.replace(config, appearance_weight=0.05, smoothness_weight=0.1)
    kernels = exact_kernels(image, config)

    @jax.jit
    def inferred(logits):
        weighted = 0
        weights = (config.appearance_weight, config.smoothness_weight)
        for weight, kernel in zip(weights, kernels, strict=True):
            kernel = jnp.asarray(kernel, jnp.float32)
            inner, outer = normalizers(kernel.sum(axis=1), normalization)
            weighted += weight * outer[:, None] * inner[:, None] * kernel * inner[None]
        flat = logits.reshape(-1, logits.shape[-1])
        return mean_field(
            flat, lambda q: jnp.matmul(weighted, q), num_iterations=config.num_iterations
        ).reshape(logits.shape)

    expected = brute_force(logits, kernels, config)
    assert np.abs(expected - softmax(logits)).max() > 0.2
    np.testing.assert_allclose(inferred(logits), expected, atol=2e-4)


@pytest.mark.parametrize(("channels", "normalization"), [(3, "symmetric"), (1, "per_pixel")])
def test_marginals_are_near_those_of_brute_force(channels, normalization):
    """The lattice approximates the appearance kernel, to a few percent."""
    logits, image, _ = scene(channels=channels)
    config = dataclasses.replace(SMALL, normalization=normalization)
    expected = brute_force(logits, exact_kernels(image, config), config)
    refined = plain(logits, image, config)
    np.testing.assert_allclose(refined.sum(axis=-1), 1, rtol=1e-5)
    assert (refined.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.99
    assert np.abs(refined - expected).mean() < 0.01


def test_labels_follow_the_colours():
    logits, image, right = scene()
    assert (logits.argmax(axis=-1) == right).mean() < 0.85
    assert (plain(logits, image).argmax(axis=-1) == right).mean() > 0.99


@pytest.mark.parametrize("normalization", NORMALIZATIONS[:2])
def test_label_maps_equal_those_of_pydensecrf(normalization):
    """Recorded from pydensecrf2 1.1 by experiments/benchmarks/dense_crf.py."""
    record = np.load(Path(__file__).parent / "fixtures" / "pydensecrf_scene.npz")
    config = CrfConfig(normalization=normalization)
    probabilities = record["probabilities"].astype(np.float32)
    refined = refine_probabilities(probabilities, record["image"], config)
    expected = record[normalization].astype(np.float32)
    changed = expected.argmax(axis=-1) != probabilities.argmax(axis=-1)
    assert changed.mean() > 0.05
    assert (refined.argmax(axis=-1) == expected.argmax(axis=-1)).mean() >= 0.99
    assert np.abs(refined - expected).mean() < 0.005


def test_the_smoothness_kernel_equals_exact_sums():
    sigma, shape = 3.0, (70, 31, 2)  # more than a tile, and less
    values = np.random.default_rng(0).random(shape, np.float32)
    taps = np.exp(-0.5 * (np.arange(-12, 13) / sigma) ** 2).astype(np.float32)
    rows, columns = (
        np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / sigma) ** 2) for n in shape[:2]
    )
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, values)
    np.testing.assert_allclose(jax.jit(gaussian_filter)(values, taps), expected, rtol=1e-3)


def test_pixels_that_are_not_valid_change_nothing():
    logits, image, _ = scene()
    beyond = ((0, 48), (0, 44), (0, 0))
    valid = np.pad(np.ones(image.shape[:2], bool), beyond[:2])
    noise = np.random.default_rng(3).normal(0, 9, (64, 64, 3)).astype(np.float32)
    refined = plain(
        np.where(valid[..., None], np.pad(logits, beyond), noise),
        np.where(valid[..., None], np.pad(image, beyond), 128 + noise),
        valid=valid,
    )
    np.testing.assert_allclose(refined[:16, :20], plain(logits, image), atol=1e-5)
    np.testing.assert_allclose(refined[~valid], softmax(noise[~valid]), atol=1e-6)


def test_refining_probabilities_of_any_size_equals_the_crf_of_their_logits():
    logits, image, _ = scene()
    probabilities = softmax(logits)
    refined = refine_probabilities(probabilities, image, SMALL)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined, plain(logits, image), atol=1e-5)
    wide = refine_probabilities(probabilities, image * np.uint16(257), SMALL)
    np.testing.assert_array_equal(wide, refined)
    certain = np.eye(3, dtype=np.float32)[probabilities.argmax(axis=-1)]
    assert np.isfinite(refine_probabilities(certain, image, SMALL)).all()


def test_traced_calls_and_batches_equal_plain_ones():
    logits, image, _ = scene()
    expected = plain(logits, image)
    np.testing.assert_allclose(traced(logits, image), expected, atol=1e-5)
    both = np.stack([logits, logits[::-1]]), np.stack([image, image[:, ::-1]])
    together = jax.jit(jax.vmap(partial(traced, capacity=1024)))(*both)
    np.testing.assert_allclose(together[0], expected, atol=1e-5)
    np.testing.assert_allclose(together[1], plain(both[0][1], both[1][1]), atol=1e-5)


def test_gradients_in_the_logits_equal_finite_differences():
    logits, image, _ = scene()
    weights, direction = np.random.default_rng(1).normal(size=(2, *logits.shape)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        return (traced(logits, image, capacity=1024) * weights).sum()

    step = np.float32(3e-3)
    after, before = (loss(logits + sign * step * direction)[0] for sign in (1, -1))
    slope = (loss(logits)[1] * direction).sum()
    np.testing.assert_allclose(slope, (after - before) / (2 * step), rtol=0.01)


def test_an_overflow_is_an_error_or_nan_and_never_a_number():
    logits, image, _ = scene()
    assert np.isnan(traced(logits, image, capacity=20)).all()
    with pytest.raises(ValueError, match="capacity=20, but the image takes"):
        plain(logits, image, capacity=20)
    with pytest.raises(ValueError, match=r"color_sigma=1e-05 are too small"):
        plain(logits, image, dataclasses.replace(SMALL, color_sigma=1e-5))


def test_mistakes_are_named():
    logits, image, _ = scene()
    for arguments, named in (
        ((logits[:-1], image), r"\(15, 20, 3\) and \(16, 20, 3\)"),
        ((logits, image[..., 0]), "image"),
        ((logits, image[..., :2]), "1 or 3 channels"),
    ):
        with pytest.raises(ValueError, match=named):
            dense_crf(*arguments)
    with pytest.raises(ValueError, match="valid has shape"):
        dense_crf(logits, image, valid=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match="'symetric'; expected"):
        CrfConfig(normalization="symetric")
    with pytest.raises(ValueError, match="color_sigma=0"):
        CrfConfig(color_sigma=0)
    with pytest.raises(ValueError, match="num_iterations=-1"):
        CrfConfig(num_iterations=-1)
