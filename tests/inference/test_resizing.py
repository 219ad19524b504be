import numpy as np
import pytest

from segjax.inference.resizing import LongSide, ShortSide, Within, enlarged_size, resize_image


def slow_bilinear(image, size):
    """Interpolates between the four nearest pixel centres, one pixel at a time."""
    resized = np.zeros((*size, *image.shape[2:]))
    for target in np.ndindex(*size):
        corners = []
        for axis in (0, 1):
            last = image.shape[axis] - 1
            place = (target[axis] + 0.5) * image.shape[axis] / size[axis] - 0.5
            place = min(max(place, 0), last)
            before = int(place)
            corners.append(((before, before + 1 - place), (min(before + 1, last), place - before)))
        for row, row_weight in corners[0]:
            for column, column_weight in corners[1]:
                resized[target] += row_weight * column_weight * image[row, column]
    return resized


def noise(height, width, *channels):
    return np.random.default_rng(height).random((height, width, *channels), np.float32)


@pytest.mark.parametrize("size", [(21, 30), (13, 18), (12, 9), (7, 9), (14, 17)])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (21,)])
def test_resizing_equals_bilinear_interpolation_pixel_by_pixel(size, channels):
    image = noise(13, 17, *channels)
    resized = resize_image(image, size)
    assert resized.shape == (*size, *channels)
    np.testing.assert_allclose(resized, slow_bilinear(image, size), atol=1e-5)


def test_shrinking_to_less_than_half_averages_areas():
    image = noise(12, 20, 7)
    expected = image.reshape(4, 3, 5, 4, 7).mean((1, 3))
    np.testing.assert_allclose(resize_image(image, (4, 5)), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 41), (15, 20), (5, 6)])
def test_many_channels_are_resized_as_each_of_them_alone(size):
    image = noise(20, 30, 300)
    alone = np.stack([resize_image(image[..., k], size) for k in range(300)], -1)
    np.testing.assert_allclose(resize_image(image, size), alone, atol=1e-6)


@pytest.mark.parametrize("size", [(41, 60), (17, 11), (3, 5)])
def test_probabilities_stay_probabilities(size):
    probabilities = np.random.default_rng(0).dirichlet([0.1] * 21, (20, 30)).astype(np.float32)
    resized = resize_image(probabilities, size)
    np.testing.assert_allclose(resized.sum(-1), 1, atol=1e-5)
    assert resized.min() >= 0
    assert resized.max() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_the_type_stays_and_whole_numbers_are_rounded(dtype):
    image = np.array([[10, 20], [10, 20]], dtype)
    resized = resize_image(image, (2, 4))
    assert resized.dtype == dtype
    rounding = 0.5 if np.issubdtype(dtype, np.integer) else 0
    np.testing.assert_allclose(resized, [[10, 12.5, 17.5, 20]] * 2, atol=rounding)


def test_an_image_of_that_size_is_returned_as_it_is():
    image = noise(5, 6, 3)
    assert resize_image(image, (5, 6)) is image


def test_rules_keep_the_aspect_and_round_to_the_nearest_pixel():
    assert ShortSide(520)((375, 500, 3)) == (520, 693)
    assert ShortSide(520)((500, 375)) == (693, 520)
    assert ShortSide(520)((333, 500)) == (520, 781)
    assert LongSide(513)((375, 500, 3)) == (385, 513)
    assert LongSide(512)((2048, 1024)) == (512, 256)
    assert LongSide(10)((1, 1000)) == (1, 10)
    within = Within(short=512, long=2048)
    assert within((375, 500, 3)) == (512, 683)
    assert within((4096, 512)) == (2048, 256)
    with pytest.raises(ValueError, match="1 ≤ short ≤ long, found 3 and 2"):
        Within(short=3, long=2)
    assert enlarged_size((375, 500, 3), 0.5) == (188, 250)


@pytest.mark.parametrize("rule", [ShortSide, LongSide])
def test_rules_without_a_length_are_refused(rule):
    with pytest.raises(ValueError, match=f"{rule.__name__}: length must be at least 1, found 0"):
        rule(0)
