"""Masks are pasted by both rules as in loops over pixels, written after the two systems."""

import math

import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.inference.paste import paste, paste_to_rle

SIZE = (37, 45)
# Inside the image, across its corners and edges, outside, thin, and of one pixel.
BOXES = np.array(
    [
        [10.3, 5.2, 30.9, 25.1],
        [-12.4, -7.7, 9.6, 14.2],
        [38.2, 30.6, 60.1, 52.9],
        [-5.0, -5.0, 55.0, 47.0],
        [20.1, 3.0, 20.6, 33.0],
        [7.2, 8.3, 8.1, 9.2],
        [3.0, 4.0, 17.0, 18.0],
        [60.0, 50.0, 80.0, 70.0],
        [-30.0, 5.0, -10.0, 20.0],
        [44.2, 2.0, 44.9, 30.0],
    ],
    np.float32,
)


def probabilities(count, side=7):
    masks = np.random.default_rng(3).random((count, side, side)).astype(np.float32)
    masks[:, 2:5, 2:5] = 1.0
    return masks


def bilinear(mask, y, x):
    """Bilinear interpolation between the centres of cells; cells beyond the mask are 0."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total += weight * float(mask[row, column])
    return total


def paste_as_detectron2(mask, box, size):
    x_min, y_min, x_max, y_max = map(float, box)
    image = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = (i + 0.5 - y_min) / (y_max - y_min) * mask.shape[0] - 0.5
            x = (j + 0.5 - x_min) / (x_max - x_min) * mask.shape[1] - 0.5
            image[i, j] = bilinear(mask, y, x)
    return image


def paste_as_torchvision(mask, box, size):
    side = len(mask) + 2
    padded = np.zeros((side, side))
    padded[1:-1, 1:-1] = mask
    x_min, y_min, x_max, y_max = map(float, box)
    half_width, half_height = (
        (b - a) / 2 * side / len(mask) for a, b in ((x_min, x_max), (y_min, y_max))
    )
    x, y = (x_min + x_max) / 2, (y_min + y_max) / 2
    left, right = int(x - half_width), int(x + half_width)  # towards zero
    top, bottom = int(y - half_height), int(y + half_height)
    height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
    image = np.zeros(size)
    for i in range(max(top, 0), min(bottom + 1, size[0])):
        for j in range(max(left, 0), min(right + 1, size[1])):
            row = min(max((i - top + 0.5) * side / height - 0.5, 0), side - 1)
            column = min(max((j - left + 0.5) * side / width - 0.5, 0), side - 1)
            image[i, j] = bilinear(padded, row, column)
    return image


ORACLES = {"detectron2": paste_as_detectron2, "torchvision": paste_as_torchvision}


@pytest.mark.parametrize("rule", ORACLES)
def test_a_pasted_mask_is_that_of_the_loop_over_pixels(rule):
    for mask, box in zip(probabilities(len(BOXES)), BOXES, strict=True):
        expected = ORACLES[rule](mask, box, SIZE)
        np.testing.assert_allclose(paste(mask, box, SIZE, rule=rule), expected, atol=2e-6)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("rule", ORACLES)
def test_run_lengths_are_those_of_the_pasted_mask_cut_at_the_threshold(rule, threshold):
    masks = probabilities(len(BOXES))
    encoded = paste_to_rle(masks, BOXES, SIZE, rule=rule, threshold=threshold)
    for mask, box, found in zip(masks, BOXES, encoded, strict=True):
        expected = paste(mask, box, SIZE, rule=rule) >= threshold
        assert found == rle.encode(expected)


def test_a_full_mask_fills_the_pixels_whose_centres_are_in_its_box():
    box = np.array([2.5, 1.5, 6.5, 4.0], np.float32)
    expected = np.zeros((8, 9), bool)
    expected[1:4, 2:7] = True  # centres 2.5 to 6.5 and 1.5 to 3.5, including the border
    expected[1, [2, 6]] = False  # except corners, where the value is half of a half
    (found,) = paste_to_rle(np.ones((1, 28, 28)), box[None], (8, 9), rule="detectron2")
    np.testing.assert_array_equal(rle.decode(found), expected)


@pytest.mark.parametrize("rule", ORACLES)
def test_empty_boxes_and_no_boxes_have_empty_masks(rule):
    boxes = np.array([[5, 5, 5, 9], [9, 9, 4, 12], [0, 0, 0, 0]], np.float32)
    found = paste_to_rle(np.ones((3, 28, 28)), boxes, SIZE, rule=rule)
    assert [rle.area(mask) for mask in found] == [0, 0, 0]
    assert paste_to_rle(np.ones((0, 28, 28)), boxes[:0], SIZE, rule=rule) == []


def test_bad_input_is_refused_by_name():
    masks = probabilities(2)
    with pytest.raises(ValueError, match='"detectron2" or "torchvision", not \'nearest\''):
        paste_to_rle(masks, BOXES[:2], SIZE, rule="nearest")
    with pytest.raises(ValueError, match=r"boxes \[d, 4\], found \(2, 7, 7\) and \(3, 4\)"):
        paste_to_rle(masks, BOXES[:3], SIZE, rule="detectron2")
    with pytest.raises(ValueError, match="expected finite boxes, found"):
        paste_to_rle(masks, np.array([BOXES[0], [0, np.nan, 1, 1]]), SIZE, rule="detectron2")
    with pytest.raises(ValueError, match="threshold must be above 0, found 0"):
        paste_to_rle(masks, BOXES[:2], SIZE, rule="detectron2", threshold=0)
