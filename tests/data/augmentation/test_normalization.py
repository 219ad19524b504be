"""Normalisation by percentiles and by the statistics of a data set."""

import numpy as np
import pytest

from segjax.data.augmentation.normalization import (
    StandardizeBands,
    StretchPercentiles,
    band_statistics,
)


def images(dtype=np.float64):
    rng = np.random.default_rng(0)
    return [
        (rng.normal((900, 30), (50, 4), (*size, 2))).astype(dtype)
        for size in ((6, 8), (11, 5), (3, 3))
    ]


def test_statistics_are_those_of_all_pixels_together():
    pixels = np.concatenate([image.reshape(-1, 2) for image in images()])
    mean, std = band_statistics(images())
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)
    # Far from zero, squares alone would lose all digits.
    far = [image + 1e9 for image in images()]
    np.testing.assert_allclose(band_statistics(far)[1], std, rtol=1e-6)
    with pytest.raises(ValueError, match="no images"):
        band_statistics([])


def test_a_flat_band_becomes_zero():
    flat = [np.full((4, 4, 1), 7, np.uint8)] * 2
    mean, std = band_statistics(flat)
    assert (mean, std) == ((7.0,), (1.0,))
    assert not StandardizeBands(mean, std)({"image": flat[0]}, None)["image"].any()
    assert not StretchPercentiles()({"image": flat[0]}, None)["image"].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_are_standardised_by_the_statistics(dtype):
    image = images()[0].clip(0, 255).astype(dtype)
    result = StandardizeBands((10.0, 20.0), (2.0, 5.0))({"image": image, "id": "a"}, None)
    assert result["image"].dtype == np.float32
    np.testing.assert_allclose(
        result["image"], (image - np.array([10, 20])) / np.array([2, 5]), rtol=1e-5
    )
    assert result["id"] == "a"


def test_percentiles_of_each_band_become_0_and_1():
    image = images()[1].astype(np.float32)
    stretched = StretchPercentiles(10, 90)({"image": image}, None)["image"]
    for band in range(2):
        np.testing.assert_allclose(np.percentile(stretched[..., band], (10, 90)), (0, 1), atol=1e-5)
    assert stretched.min() < 0
    assert stretched.max() > 1
    scaled = StretchPercentiles(10, 90)({"image": image * 3 + 5}, None)["image"]
    np.testing.assert_allclose(scaled, stretched, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StandardizeBands((1.0,), (1.0, 2.0)), "mean has 1 numbers and std 2"),
        (lambda: StandardizeBands((), ()), "expected one of each"),
        (lambda: StandardizeBands((1.0,), (0.0,)), "std must be positive"),
        (lambda: StretchPercentiles(99, 1), "expected 0 ≤ low < high ≤ 100"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_other_bands_are_refused():
    with pytest.raises(ValueError, match="the image has 3 bands, the statistics 2"):
        StandardizeBands((1.0, 2.0), (1.0, 1.0))({"image": np.zeros((2, 2, 3))}, None)
