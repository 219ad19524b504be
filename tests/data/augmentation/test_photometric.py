"""Grey values and colours, against hand-computed values and the standard library's HSV."""

import colorsys

import numpy as np
import pytest

from segjax.data.augmentation.photometric import (
    GreyValues,
    PhotometricDistortion,
    check_pixel_range,
    to_eight_bits,
)

OFF = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def test_values_of_16_bits_become_the_8_bits_that_they_stand_for():
    photo = np.arange(256, dtype=np.uint8).reshape(8, 32)
    for image, pixel_range in (
        (photo * np.uint16(257), (0, 65535)),
        (photo * np.uint16(16), (0, 255 * 16)),
        (photo.astype(np.float32) / 255, (0, 1)),
        (photo + 1000.0, (1000, 1255)),
    ):
        before = image.copy()
        found = to_eight_bits(image, pixel_range)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, photo)
        np.testing.assert_array_equal(image, before)


def test_values_outside_of_the_range_are_clipped_and_those_inside_rounded():
    image = np.array([[0, 99, 100, 101, 150, 199, 200, 201, 65535]], np.uint16)
    found = to_eight_bits(image, (100, 200))
    np.testing.assert_array_equal(found, [[0, 0, 0, 3, 128, 252, 255, 255, 255]])


@pytest.mark.parametrize("pixel_range", [(1, 1), (5, 0), (0, np.inf), (np.nan, 1)])
def test_a_range_without_extent_is_refused(pixel_range):
    check_pixel_range(None)
    check_pixel_range((-1, 1))
    with pytest.raises(ValueError, match=r"pixel_range=.*; expected the lowest and the highest"):
        check_pixel_range(pixel_range)


def test_grey_values_off_change_nothing_and_work_in_16_bits():
    for dtype in (np.uint8, np.uint16):
        image = np.linspace(0, np.iinfo(dtype).max, 60).astype(dtype).reshape(5, 12, 1)
        result = GreyValues()({"image": image}, np.random.default_rng(0))["image"]
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, image, rtol=1e-5, atol=0.01)


def test_each_grey_value_option_does_what_it_says():
    image = np.linspace(100, 300, 1000, dtype=np.float32).reshape(20, 50, 1)
    seen = {"brightness": [], "contrast": [], "gamma": [], "noise": []}
    for seed in range(200):
        for name, amount in (("brightness", 0.1), ("contrast", 0.3), ("gamma", 0.5)):
            transform = GreyValues(**{name: amount})
            changed = transform({"image": image}, np.random.default_rng(seed))["image"]
            assert (np.diff(changed.ravel()) > 0).all()
            if name == "brightness":
                seen[name].append(np.mean(changed - image) / 200)
                np.testing.assert_allclose(changed - image, seen[name][-1] * 200, atol=1e-2)
            elif name == "contrast":
                seen[name].append(np.ptp(changed) / 200)
                np.testing.assert_allclose(changed.mean(), image.mean(), rtol=1e-4)
            else:
                middle = np.interp(200, image.ravel(), changed.ravel())
                seen[name].append(np.log((middle - 100) / 200) / np.log(0.5))
                np.testing.assert_allclose([changed.min(), changed.max()], [100, 300], rtol=1e-5)
        noisy = GreyValues(noise=0.2)({"image": image}, np.random.default_rng(seed))["image"]
        seen["noise"].append(np.std(noisy - image) / 200)
    limits = {"brightness": (-0.1, 0.1), "contrast": (0.7, 1.3), "gamma": (1 / 1.5, 1.5)}
    for name, (lowest, highest) in {**limits, "noise": (0.0, 0.2)}.items():
        margin = 0.05 * (highest - lowest)
        assert lowest - margin < min(seen[name]) < lowest + margin, name
        assert highest - margin < max(seen[name]) < highest + margin, name


def test_a_flat_image_survives_grey_values():
    example = {"image": np.full((4, 4, 1), 7, np.uint8)}
    grey = GreyValues(brightness=0.5, contrast=0.5, gamma=0.5, noise=0.5)
    np.testing.assert_array_equal(grey(example, np.random.default_rng(0))["image"], 7)


def colours(dtype=np.uint8):
    """Many colours: a grid, grey levels, and the primary and secondary colours."""
    grid = np.stack(np.meshgrid(*[[0, 30, 100, 170, 254]] * 3), -1).reshape(-1, 3)
    grey = np.repeat(np.arange(0, 256, 15), 3).reshape(-1, 3)
    pure = 255 * (np.arange(8)[:, None] >> np.arange(3) & 1)
    return np.concatenate([grid, grey, pure])[None].astype(dtype)


def distorted(seed=0, image=None, **options):
    image = colours() if image is None else image
    example = {"image": image, "labels": np.zeros(image.shape[:2], np.uint8), "id": "a"}
    return PhotometricDistortion(**{**OFF, **options})(example, np.random.default_rng(seed))[
        "image"
    ]


def slow_hsv(image, *, turn=0.0, factor=1.0):
    """Turns the hue by degrees and multiplies the saturation pixel by pixel."""
    result = []
    for pixel in image.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        result.append(
            colorsys.hsv_to_rgb((hue + turn / 360) % 1, min(saturation * factor, 1), value)
        )
    return np.reshape(result, image.shape) * 255


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_with_all_off_only_the_type_changes(dtype):
    result = distorted(image=colours(dtype))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, colours())


def test_brightness_adds_one_number_up_to_its_limit_in_half_of_the_cases():
    added = []
    for seed in range(400):
        result = distorted(seed, brightness=32.0)
        shift = result[0, 0, 0] if result[0, 0, 0] > 0 else result.max() - 255
        np.testing.assert_allclose(result, np.clip(colours() + shift, 0, 255), atol=1e-4)
        added.append(shift)
    assert -32 <= min(added) < -30
    assert 30 < max(added) <= 32
    assert 160 < np.count_nonzero(added) < 240


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_contrast_multiplies_in_half_of_the_cases(factor):
    outcomes = [colours(), np.clip(colours() * factor, 0, 255)]
    seen = [distorted(seed, contrast=(factor, factor)) for seed in range(40)]
    places = [[np.array_equal(result, outcome) for outcome in outcomes] for result in seen]
    assert all(any(place) for place in places)
    assert 10 < np.sum(places, axis=0)[1] < 30


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5])
def test_saturation_equals_that_of_the_standard_library(factor):
    expected, changed = slow_hsv(colours(), factor=factor), 0
    for seed in range(20):
        result = distorted(seed, saturation=(factor, factor))
        if not np.array_equal(result, colours()):
            np.testing.assert_allclose(result, expected, atol=1e-2)
            changed += 1
    assert 4 < changed < 16


def test_hue_turns_all_colours_alike_up_to_its_limit_and_leaves_grey():
    turns = []
    for seed in range(60):
        result = distorted(seed, hue=36.0)
        red = result[0, -7]  # pure red before
        turn = 360 * colorsys.rgb_to_hsv(*(red / 255).tolist())[0]
        turn = turn - 360 if turn > 180 else turn
        np.testing.assert_allclose(result, slow_hsv(colours(), turn=turn), atol=2e-2)
        turns.append(turn)
    assert -36.1 < min(turns) < -30
    assert 30 < max(turns) < 36.1
    assert 18 < np.count_nonzero(np.abs(turns) > 0.01) < 42


def test_contrast_comes_before_or_after_the_colours_and_always_after_brightness():
    def contrast(image):
        return np.clip(image * 2.0, 0, 255)

    def saturation(image):
        return slow_hsv(image, factor=0.2)

    original = colours().astype(float)
    outcomes = [
        original,
        contrast(original),
        saturation(original),
        saturation(contrast(original)),
        contrast(saturation(original)),
    ]
    found = []
    for seed in range(60):
        result = distorted(seed, contrast=(2.0, 2.0), saturation=(0.2, 0.2))
        near = [np.abs(result - outcome).max() < 0.05 for outcome in outcomes]
        assert sum(near) == 1
        found.append(near.index(True))
    assert set(found) == {0, 1, 2, 3, 4}
    dark = np.full((1, 1, 3), 40, np.uint8)
    largest = max(
        distorted(seed, dark, brightness=32.0, contrast=(2.0, 2.0)).max() for seed in range(60)
    )
    assert 2 * (40 + 28) < largest <= 2 * (40 + 32)  # contrast first would give 2 · 40 + 32


def test_values_stay_in_their_range_and_the_input_as_it_was():
    image = colours(np.float32)
    image.flags.writeable = False
    GreyValues(brightness=0.1, contrast=0.1, gamma=0.1, noise=0.1)(
        {"image": image}, np.random.default_rng(0)
    )
    results = [
        PhotometricDistortion()({"image": image}, np.random.default_rng(seed))["image"]
        for seed in range(50)
    ]
    assert min(result.min() for result in results) == 0
    assert max(result.max() for result in results) == 255
    np.testing.assert_array_equal(image, colours())
    again = PhotometricDistortion()({"image": image}, np.random.default_rng(7))["image"]
    np.testing.assert_array_equal(again, results[7])


def test_the_truth_stays_as_it_is():
    example = {"image": colours(), "labels": np.ones(colours().shape[:2], np.uint8), "id": "a"}
    for transform in (PhotometricDistortion(), GreyValues(noise=0.1)):
        result = transform(example, np.random.default_rng(1))
        assert result.keys() == example.keys()
        assert result["labels"] is example["labels"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 1), np.uint8), r"needs colours.* \(4, 5, 1\).*GreyValues"),
        (np.zeros((4, 5), np.uint8), r"needs colours.* \(4, 5\)"),
        (np.full((4, 5, 3), 300, np.uint16), "uint16 from 300 to 300"),
        (np.full((4, 5, 3), -1.5, np.float32), "float32 from -1.5"),
        (np.full((4, 5, 3), np.nan, np.float32), "float32 from nan"),
    ],
)
def test_images_other_than_colours_from_0_to_255_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        distorted(image=image)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GreyValues(noise=-0.1), "noise"),
        (lambda: GreyValues(contrast=1.5), "contrast"),
        (lambda: PhotometricDistortion(brightness=-1.0), "brightness must not be negative, got -1"),
        (lambda: PhotometricDistortion(hue=-1.0), "hue must not be negative"),
        (lambda: PhotometricDistortion(contrast=(1.5, 0.5)), r"contrast .* got \(1.5, 0.5\)"),
        (lambda: PhotometricDistortion(saturation=(-0.5, 1)), r"saturation .* got \(-0.5, 1\)"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
