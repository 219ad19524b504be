"""Objects numbered band by band, against the whole image at once."""

import numpy as np
import pytest
from scipy import ndimage

from segjax.data.instance_bands import close_gaps_in_bands, components_in_bands, rows_of_parts
from segjax.data.instances import close_gaps, label_components


def cut(array, heights):
    """Cuts rows into bands of these heights, again and again."""
    top, bands = 0, []
    while top < len(array):
        height = heights[len(bands) % len(heights)]
        bands.append(array[top : top + height])
        top += height
    return bands


def blobs(seed, *, sigma, share=0.5, size=(61, 47)):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), sigma)
    return smooth > np.quantile(smooth, 1 - share)


@pytest.mark.parametrize("heights", [(7,), (1,), (20, 3, 11), (100,)])
@pytest.mark.parametrize("sigma", [0.5, 1.5, 4])
@pytest.mark.parametrize("min_size", [0, 6])
def test_components_have_the_numbers_of_the_whole_image(heights, sigma, min_size):
    for seed in range(5):
        mask = blobs(seed, sigma=sigma)
        expected = label_components(mask, min_size=min_size)
        count, bands = components_in_bands(lambda: cut(mask, heights), min_size=min_size)  # noqa: B023
        assert count == expected.max()
        for _ in range(2):
            found = np.concatenate([*bands()])
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, expected)


def test_an_image_without_components_has_none():
    count, bands = components_in_bands(lambda: cut(np.zeros((9, 5), bool), (4,)))
    assert count == 0
    np.testing.assert_array_equal(np.concatenate([*bands()]), np.zeros((9, 5)))


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("heights", [(5,), (1,), (33, 2), (100,)])
def test_gaps_are_closed_as_in_the_whole_image(width, heights):
    changed = 0
    for seed in range(6):
        cells = label_components(blobs(seed, sigma=1.5, share=0.7))
        expected = close_gaps(cells, width=width)
        found = np.concatenate([*close_gaps_in_bands(cut(cells, heights), width=width)])
        np.testing.assert_array_equal(found, expected)
        changed += (expected != cells).sum()
    assert changed > 0


def test_parts_become_rows():
    image = np.arange(7 * 9 * 2).reshape(7, 9, 2)
    parts = [
        (row, column, image[row : row + 3, column : column + 4])
        for row in range(0, 7, 3)
        for column in range(0, 9, 4)
    ]
    bands = [*rows_of_parts(parts, 9)]
    assert [len(band) for band in bands] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(bands), image)
