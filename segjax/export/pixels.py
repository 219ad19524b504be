"""Normalisation of images in JAX: what `segjax.data.augmentation` computes in NumPy."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.data.augmentation.normalization import StandardizeBands, StretchPercentiles
from segjax.data.augmentation.semantic import Normalize, Standardize


def normalization(preprocess: Any) -> Callable:
    """Returns a function of images [batch, height, width, channels] that equals a preprocessing.

    Args:
      preprocess: the preprocessing of a task.

    Raises:
      ValueError: the preprocessing is not one of segjax's.
    """
    forms: dict[type, Callable] = {
        Normalize: _normalize,
        Standardize: _standardize,
        StandardizeBands: _standardize_bands,
        StretchPercentiles: _stretch_percentiles,
    }
    if type(preprocess) not in forms:
        raise ValueError(
            f"the preprocessing {type(preprocess).__name__} has no form that can be exported; "
            f"expected one of {', '.join(kind.__name__ for kind in forms)}"
        )
    form = forms[type(preprocess)]
    return lambda images: form(images.astype(jnp.float32), preprocess)


def eight_bits(images, pixel_range: tuple[float, float]):
    """Maps values to 0 to 255 and rounds; see `photometric.to_eight_bits`. Returns uint8."""
    low, high = pixel_range
    scaled = (images.astype(jnp.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return jnp.rint(jnp.clip(scaled, 0, 255)).astype(jnp.uint8)


def _normalize(images, preprocess: Normalize):
    if images.shape[3] == 1 and isinstance(preprocess.mean, tuple):
        images = jnp.repeat(images, len(preprocess.mean), axis=3)
    return _by_band(images, preprocess.mean, preprocess.std)


def _standardize_bands(images, preprocess: StandardizeBands):
    return _by_band(images, preprocess.mean, preprocess.std)


def _by_band(images, mean, std):
    channels = images.shape[3]
    mean, std = (
        np.resize(np.asarray(each, np.float32), channels)[None, None, None] for each in (mean, std)
    )
    return (images - mean) / std


def _standardize(images, preprocess: Standardize):
    del preprocess
    centred = images - _mean(images)
    std = jnp.sqrt(_mean(jnp.square(centred - _mean(centred))))
    return jnp.where(std > 0, centred / jnp.where(std > 0, std, 1.0), centred)


def _mean(x):
    """Computes the mean of each image. NumPy adds in float64, for which the rest makes up."""
    mean = _rough_mean(x)
    return mean + _rough_mean(x - mean)


def _rough_mean(x):
    # Rows first: sums of few numbers lose few digits.
    rows = jnp.mean(x, axis=2, keepdims=True)
    return jnp.mean(jnp.mean(rows, axis=1, keepdims=True), axis=3, keepdims=True)


def _stretch_percentiles(images, preprocess: StretchPercentiles):
    batch, height, width, bands = images.shape
    ordered = jnp.sort(images.reshape(batch, height * width, bands), axis=1)
    low, high = (
        _percentile(ordered, share)[:, None, None] for share in (preprocess.low, preprocess.high)
    )
    flat = high <= low
    return jnp.where(flat, 0.0, (images - low) / jnp.where(flat, 1.0, high - low))


def _percentile(ordered, percent: float):
    """Interpolates between the two nearest of sorted values [batch, n, bands]."""
    # The place percent / 100 · (n − 1) in integers: float32 has too few digits for large images.
    last = jnp.asarray(ordered.shape[1] - 1, jnp.int32)
    thousandths = round(percent * 1000)
    whole, rest = last // 100_000, last % 100_000
    below = whole * thousandths + rest * thousandths // 100_000
    beyond = (rest * thousandths % 100_000).astype(jnp.float32) / 100_000
    values = [
        jnp.take(ordered, jnp.minimum(place, last), axis=1, mode="clip")
        for place in (below, below + 1)
    ]
    return values[0] + (values[1] - values[0]) * beyond
