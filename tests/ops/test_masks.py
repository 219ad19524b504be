"""Mask targets and pasting against loops over pixels, and against each other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import masks as module

paste_masks = jax.jit(module.paste_masks, static_argnames=("size", "rule"))
targets_from_boxes = jax.jit(module.targets_from_boxes, static_argnames=("size", "binary"))
targets_from_images = jax.jit(
    module.targets_from_images, static_argnames=("size", "aligned", "binary")
)

MASKS = (np.random.default_rng(0).uniform(size=(3, 14, 20)) > 0.5).astype(np.uint8)
BOXES = np.array([[2.5, 1, 17, 13.2], [0, 0, 20, 14], [4, 5, 4.5, 5.7], [1, 3, 19, 4]], np.float32)
MATCHED = np.array([2, 0, 1, 2], np.int32)


def bilinear(mask, y, x, outside):
    """The mask at (y, x), where the centre of cell (i, j) lies at (i, j)."""
    height, width = mask.shape
    total = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if outside == "clamped":
                cell = mask[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
            else:
                cell = mask[i, j] if 0 <= i < height and 0 <= j < width else 0.0
            total += cell * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def target_of_loops(mask, box, size, aligned):
    """RoIAlign of a mask, with ⌈bin⌉ samples a side; boxes inside the image."""
    x, y, x_max, y_max = np.asarray(box, np.float64) - (0.5 if aligned else 0)
    height, width = y_max - y, x_max - x
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    rows, columns = math.ceil(height / size), math.ceil(width / size)
    target = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        for a, b in np.ndindex(rows, columns):
            at = (
                y + height * (i + (a + 0.5) / rows) / size,
                x + width * (j + (b + 0.5) / columns) / size,
            )
            target[i, j] += bilinear(mask, *at, "clamped") / (rows * columns)
    return target


@pytest.mark.parametrize("aligned", [True, False])
def test_targets_from_images_are_roi_align_with_adaptive_sampling(aligned):
    options = {"size": 5, "aligned": aligned}
    soft = targets_from_images(MASKS, BOXES, MATCHED, binary=False, **options)
    expected = [
        target_of_loops(MASKS[match].astype(float), box, 5, aligned)
        for match, box in zip(MATCHED, BOXES, strict=True)
    ]
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    binary = targets_from_images(MASKS, BOXES, MATCHED, binary=True, **options)
    np.testing.assert_array_equal(binary, np.array(expected) >= 0.5 - 1e-6)


def test_a_cell_that_is_covered_by_half_is_foreground():
    mask = np.zeros((1, 6, 7), np.uint8)
    mask[:, :, :3] = 1
    box, matched = np.array([[0, 0, 6, 6]], np.float32), np.array([0], np.int32)
    target = targets_from_images(mask, box, matched, size=3, aligned=True, binary=True)
    np.testing.assert_array_equal(target, [[[1, 1, 0]] * 3])
    target = targets_from_boxes(mask[:, :, :6] * 255, box, box, matched, size=3)
    np.testing.assert_array_equal(target, [[[1, 1, 0]] * 3])


def area_of_loops(mask, mask_box, box, size):
    """What part of each cell of a target the mask covers, by the overlap of each pair of cells."""
    corners = [np.asarray(b, np.float64) for b in (mask_box, box)]
    (x, y, x_max, y_max), (left, top, right, bottom) = corners
    count = len(mask)
    height, width = (y_max - y) / count, (x_max - x) / count
    bin_height, bin_width = (bottom - top) / size, (right - left) / size
    target = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        for a, b in np.ndindex(count, count):
            low, high = max(top + i * bin_height, y + a * height), y + (a + 1) * height
            rows = max(min(top + (i + 1) * bin_height, high) - low, 0)
            low, high = max(left + j * bin_width, x + b * width), x + (b + 1) * width
            columns = max(min(left + (j + 1) * bin_width, high) - low, 0)
            target[i, j] += mask[a, b] * rows * columns / (bin_height * bin_width)
    return target


COVERAGE = np.random.default_rng(3).integers(0, 256, (3, 6, 6), np.uint8)
MASK_BOXES = np.array([[0, 0, 20, 14], [3, 4, 9.5, 6], [5, -2, 30, 11]], np.float32)


def test_targets_from_boxes_are_the_part_of_each_cell_that_is_covered():
    soft = targets_from_boxes(COVERAGE, MASK_BOXES, BOXES, MATCHED, size=5, binary=False)
    expected = [
        area_of_loops(COVERAGE[match] / 255, MASK_BOXES[match], box, 5)
        for match, box in zip(MATCHED, BOXES, strict=True)
    ]
    np.testing.assert_allclose(soft, expected, atol=1e-5)


def test_the_target_in_a_masks_own_frame_is_the_mask():
    boxes, matched = jnp.asarray(MASK_BOXES), jnp.arange(3)
    target = targets_from_boxes(COVERAGE, boxes, boxes, matched, size=6, binary=False)
    np.testing.assert_allclose(target, COVERAGE / 255, atol=1e-5)


def test_empty_boxes_have_empty_targets():
    empty = jnp.asarray([[0, 0, 0, 0], [5, 5, 9, 5]], jnp.float32)
    full, matched = jnp.full((2, 4, 4), 255, jnp.uint8), jnp.arange(2)
    some = jnp.asarray([[0, 0, 9, 9]] * 2, jnp.float32)
    for mask_boxes, boxes in ((empty, some), (some, empty), (empty, empty)):
        target = targets_from_boxes(full, mask_boxes, boxes, matched, size=3, binary=False)
        np.testing.assert_array_equal(target, np.zeros((2, 3, 3)))


def test_no_boxes_have_no_targets():
    none, matched = jnp.zeros((0, 4), jnp.float32), jnp.zeros(0, jnp.int32)
    assert targets_from_boxes(COVERAGE, MASK_BOXES, none, matched).shape == (0, 28, 28)
    options = {"aligned": True, "binary": True}
    assert targets_from_images(MASKS, none, matched, **options).shape == (0, 28, 28)
    assert paste_masks(COVERAGE[:0], none, size=(5, 7), rule="detectron2").shape == (0, 5, 7)


def covered(mask, box, count):
    """The mask in the frame of an integer box, as coverage of count × count cells, 0 to 255."""
    left, top, right, bottom = box
    rows, columns = (
        np.repeat(np.eye(side), count, axis=0).reshape(count, side, side).mean(1)
        for side in (bottom - top, right - left)
    )
    return np.rint(255 * rows @ mask[top:bottom, left:right] @ columns.T).astype(np.uint8)


def test_targets_from_boxes_of_ellipses_are_those_from_images_to_an_iou_of_0_97():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:100, :120] + 0.5
    masks, packed, tight, proposals = [], [], [], []
    for _ in range(24):
        radii, centre, angle = rng.uniform(8, 36, 2), rng.uniform(45, 55, 2), rng.uniform(0, np.pi)
        u = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
        v = (y - centre[0]) * np.cos(angle) - (x - centre[1]) * np.sin(angle)
        mask = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 <= 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        side = np.tile(box[2:] - box[:2], 2)
        masks.append(mask)
        packed.append(covered(mask, box, 112))
        tight.append(box)
        proposals.append(box + rng.uniform(-0.15, 0.15, 4) * side)
    boxes, matched = np.array(proposals, np.float32), np.arange(24, dtype=np.int32)
    expected = targets_from_images(np.array(masks), boxes, matched, aligned=True, binary=True)
    targets = targets_from_boxes(np.array(packed), np.array(tight, np.float32), boxes, matched)
    expected, targets = np.asarray(expected) > 0, np.asarray(targets) > 0
    overlap, union = (expected & targets).sum((1, 2)), (expected | targets).sum((1, 2))
    assert (overlap / union).min() > 0.97
    assert (overlap / union).mean() > 0.995


def pasted_by_detectron2(mask, box, size):
    """Each pixel's centre, in the mask's frame, which is zero outside."""
    x, y, x_max, y_max = np.asarray(box, np.float64)
    image = np.zeros(size)
    for i, j in np.ndindex(*size):
        row = (i + 0.5 - y) / (y_max - y) * mask.shape[0] - 0.5
        column = (j + 0.5 - x) / (x_max - x) * mask.shape[1] - 0.5
        image[i, j] = bilinear(mask, row, column, "zero")
    return image


def pasted_by_torchvision(mask, box, size):
    """The padded mask, resized to whole pixels by half-pixel centres, and copied into the image."""
    mask = np.pad(mask, 1)
    (height, width), scale = mask.shape, len(mask) / (len(mask) - 2)
    centre_x, half_x = (box[0] + box[2]) / 2, (box[2] - box[0]) / 2 * scale
    centre_y, half_y = (box[1] + box[3]) / 2, (box[3] - box[1]) / 2 * scale
    left, right = int(centre_x - half_x), int(centre_x + half_x)
    top, bottom = int(centre_y - half_y), int(centre_y + half_y)
    rows, columns = max(bottom - top + 1, 1), max(right - left + 1, 1)
    image = np.zeros(size)
    for i, j in np.ndindex(rows, columns):
        if 0 <= top + i < size[0] and 0 <= left + j < size[1]:
            row = max((i + 0.5) * height / rows - 0.5, 0)
            column = max((j + 0.5) * width / columns - 0.5, 0)
            image[top + i, left + j] = bilinear(mask, row, column, "clamped")
    return image


PROBABILITIES = np.random.default_rng(7).uniform(size=(5, 6, 6)).astype(np.float32)
PASTE_BOXES = np.array(
    [
        [2.2, 1.7, 17.3, 12.9],
        [-6.4, -3.3, 9.1, 8.6],  # over the upper left corner
        [11, 9, 40, 31],  # over the lower right corner
        [5.3, 6.4, 5.9, 6.7],  # less than a pixel
        [3, 2, 9, 13],
    ],
    np.float32,
)


@pytest.mark.parametrize(
    ("rule", "oracle"),
    [("detectron2", pasted_by_detectron2), ("torchvision", pasted_by_torchvision)],
)
def test_pasted_masks_equal_those_of_loops_over_pixels(rule, oracle):
    pasted = paste_masks(PROBABILITIES, PASTE_BOXES, size=(14, 20), rule=rule)
    expected = [
        oracle(mask.astype(np.float64), box.astype(np.float64), (14, 20))
        for mask, box in zip(PROBABILITIES, PASTE_BOXES, strict=True)
    ]
    np.testing.assert_allclose(pasted, expected, atol=1e-5)


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_pasting_on_a_larger_image_and_cropping_is_pasting_on_the_small_one(rule):
    small = paste_masks(PROBABILITIES, PASTE_BOXES, size=(14, 20), rule=rule)
    large = paste_masks(PROBABILITIES, PASTE_BOXES, size=(30, 41), rule=rule)
    np.testing.assert_allclose(large[:, :14, :20], small, atol=1e-6)
    assert large[2, 14:, 20:].max() > 0  # there was something to crop


@pytest.mark.parametrize("rule", ["detectron2", "torchvision"])
def test_masks_of_empty_boxes_paste_nothing(rule):
    empty = jnp.asarray(
        [[0, 0, 0, 0], [3, 3, 3, 9], [3.5, 3.5, 3.5, 3.5], [9, 9, 2, 2]], jnp.float32
    )
    pasted = paste_masks(jnp.ones((4, 6, 6)), empty, size=(14, 20), rule=rule)
    np.testing.assert_array_equal(pasted, np.zeros((4, 14, 20)))


def test_vmap_over_images_equals_one_at_a_time():
    def stack(x):
        return jnp.stack([jnp.asarray(x), jnp.asarray(x)[::-1]])

    from_boxes = functools.partial(targets_from_boxes, size=5, binary=False)
    from_images = functools.partial(targets_from_images, size=5, aligned=True, binary=False)
    paste = functools.partial(paste_masks, size=(9, 8), rule="detectron2")
    for function, operands in (
        (from_boxes, (COVERAGE, MASK_BOXES, BOXES, MATCHED)),
        (from_images, (MASKS, BOXES, MATCHED)),
        (paste, (PROBABILITIES, PASTE_BOXES)),
    ):
        stacked = [stack(x) for x in operands]
        together = jax.vmap(function)(*stacked)
        for image in (0, 1):
            one = function(*(x[image] for x in stacked))
            np.testing.assert_allclose(together[image], one, atol=1e-6)


def test_an_unknown_paste_rule_is_named():
    with pytest.raises(ValueError, match="'nearest' is not 'detectron2' or 'torchvision'"):
        paste_masks(PROBABILITIES, PASTE_BOXES, size=(4, 4), rule="nearest")
