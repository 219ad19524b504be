"""Normalisation of images in windows, against that of the whole image."""

import numpy as np
import pytest

from segjax.data.augmentation.normalization import StandardizeBands, StretchPercentiles, percentiles
from segjax.data.augmentation.semantic import Normalize, Standardize


def _images():
    rng = np.random.default_rng(0)
    yield rng.integers(0, 256, (37, 53, 1)).astype(np.uint8)
    yield rng.integers(0, 65536, (64, 31, 2)).astype(np.uint16)
    yield (rng.normal(size=(41, 29, 3)) * [1, 1e-4, 1e5] + [0, 7, -1e6]).astype(np.float32)
    yield np.full((5, 4, 1), 7, np.uint8)
    yield np.array([[[-0.0], [0.0], [-1.0], [2.0]]], np.float32)


IMAGES = [pytest.param(image, id=f"{image.dtype}{image.shape}") for image in _images()]


def windows_of(image, side=16):
    for top in range(0, image.shape[0], side):
        for left in range(0, image.shape[1], side):
            yield image[top : top + side, left : left + side]


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize(
    "transform", [Standardize(), StretchPercentiles(), StretchPercentiles(20, 50)]
)
def test_windows_are_normalised_with_the_statistics_of_the_image(image, transform):
    fitted = transform.for_windows(lambda: windows_of(image))
    expected = transform({"image": image}, None)["image"]
    found = [fitted({"image": window}, None)["image"] for window in windows_of(image)]
    for part, whole in zip(found, windows_of(expected), strict=True):
        assert part.dtype == np.float32
        np.testing.assert_allclose(part, whole, rtol=3e-7, atol=3e-7 * abs(whole).max())


@pytest.mark.parametrize("image", IMAGES)
def test_percentiles_are_those_of_numpy_bit_for_bit(image):
    shares = (0, 1, 33.3, 50, 99.8, 100)
    found = percentiles(lambda: windows_of(image, 7), shares)
    expected = np.percentile(image.astype(np.float32), shares, axis=(0, 1)).astype(np.float32)
    np.testing.assert_array_equal(found, expected)


def test_transforms_that_know_their_statistics_are_the_same_for_windows():
    for transform in (Normalize(1.0, 2.0), StandardizeBands((1.0,), (2.0,))):
        assert transform.for_windows(lambda: iter(())) is transform
