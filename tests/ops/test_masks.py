"""Mask targets against loops over cells, and against RoIAlign of the whole image's masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import masks as module
from segjax.ops import roi_align

targets_from_boxes = jax.jit(module.targets_from_boxes, static_argnames=("size", "binary"))

BOXES = np.array([[2.5, 1, 17, 13.2], [0, 0, 20, 14], [4, 5, 4.5, 5.7], [1, 3, 19, 4]], np.float32)
MATCHED = np.array([2, 0, 1, 2], np.int32)


def test_a_cell_that_is_covered_by_half_is_foreground():
    mask = np.zeros((1, 6, 7), np.uint8)
    mask[:, :, :3] = 1
    box, matched = np.array([[0, 0, 6, 6]], np.float32), np.array([0], np.int32)
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


def covered(mask, box, count):
    """The mask in the frame of an integer box, as coverage of count × count cells, 0 to 255."""
    left, top, right, bottom = box
    rows, columns = (
        np.repeat(np.eye(side), count, axis=0).reshape(count, side, side).mean(1)
        for side in (bottom - top, right - left)
    )
    return np.rint(255 * rows @ mask[top:bottom, left:right] @ columns.T).astype(np.uint8)


def test_targets_of_ellipses_are_detectron2s_to_an_iou_of_0_97():
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
    # detectron2's targets: RoIAlign of each mask in its own box, cut at one half.
    maps = jnp.asarray(np.array(masks), jnp.float32)[..., None]
    options = {"output_size": 28, "spatial_scale": 1.0, "sampling_ratio": 0, "aligned": True}
    expected = np.asarray(roi_align(maps, boxes[:, None], **options))[:, 0, :, :, 0] >= 0.5 - 1e-5
    targets = targets_from_boxes(np.array(packed), np.array(tight, np.float32), boxes, matched)
    targets = np.asarray(targets) > 0
    overlap, union = (expected & targets).sum((1, 2)), (expected | targets).sum((1, 2))
    assert (overlap / union).min() > 0.97
    assert (overlap / union).mean() > 0.995


def test_vmap_over_images_equals_one_at_a_time():
    def stack(x):
        return jnp.stack([jnp.asarray(x), jnp.asarray(x)[::-1]])

    function = functools.partial(targets_from_boxes, size=5, binary=False)
    operands = COVERAGE, MASK_BOXES, BOXES, MATCHED
    stacked = [stack(x) for x in operands]
    together = jax.vmap(function)(*stacked)
    for image in (0, 1):
        one = function(*(x[image] for x in stacked))
        np.testing.assert_allclose(together[image], one, atol=1e-6)
