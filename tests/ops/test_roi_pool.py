"""RoIPool against loops, RoIWarp against RoIAlign of rounded boxes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.roi_align import roi_align
from segjax.ops.roi_pool import roi_pool, roi_warp

FEATURES = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)
BOXES = np.array(
    [
        [[3.1, 5.7, 30.2, 20.9], [0, 0, 36, 28], [-9, -30, 6, 5]],
        [[8.3, 8.3, 8.9, 9.0], [100, 100, 120, 140], [6, 10, 6, 10]],  # 6 / 4 and 10 / 4 are halves
    ],
    np.float32,
)


def c_round(x):
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def oracle(image, box, rows, columns):
    """The loops of Fast R-CNN's roi_pooling_layer, at stride 4."""
    x, y, x_max, y_max = (c_round(c / 4) for c in box)
    row_size = max(y_max - y + 1, 1) / rows
    column_size = max(x_max - x + 1, 1) / columns
    result = np.zeros((rows, columns, image.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            top, bottom = y + math.floor(i * row_size), y + math.ceil((i + 1) * row_size)
            left, right = x + math.floor(j * column_size), x + math.ceil((j + 1) * column_size)
            part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if part.size:
                result[i, j] = part.max((0, 1))
    return result


@jax.jit
def pool(features, boxes):
    return roi_pool(features, boxes, output_size=(3, 2), spatial_scale=0.25)


def test_pooled_values_equal_those_of_loops():
    expected = [
        [oracle(image, box, 3, 2) for box in boxes]
        for image, boxes in zip(FEATURES, BOXES, strict=True)
    ]
    np.testing.assert_array_equal(pool(FEATURES, BOXES), expected)


def test_the_gradient_goes_to_the_first_of_the_largest_cells():
    tied = jnp.zeros((1, 4, 4, 1), jnp.float32).at[0, 1:3, 1:3].set(5.0)
    boxes = jnp.asarray([[[0, 0, 12, 12]]], jnp.float32)
    whole = functools.partial(roi_pool, boxes=boxes, output_size=1, spatial_scale=0.25)
    assert whole(tied).item() == 5
    gradient = jax.grad(lambda x: 3 * whole(x).sum())(tied)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(tied).at[0, 1, 1].set(3.0))


def test_bins_outside_of_the_map_get_no_gradient():
    outside = jnp.asarray([[[400, 400, 500, 500]]], jnp.float32)
    gradient = jax.grad(lambda x: pool(x, outside).sum())(jnp.asarray(FEATURES[:1]))
    np.testing.assert_array_equal(gradient, np.zeros_like(FEATURES[:1]))


def test_vmap_of_pooling_equals_one_image_at_a_time():
    mapped = jax.vmap(lambda features, boxes: pool(features[None], boxes[None])[0])
    np.testing.assert_array_equal(mapped(FEATURES, BOXES), pool(FEATURES, BOXES))


def test_no_boxes_give_no_features():
    assert pool(FEATURES, np.zeros((2, 0, 4), np.float32)).shape == (2, 0, 3, 2, 3)


def warp(boxes, aggregation):
    options = {"output_size": (3, 2), "spatial_scale": 0.25, "aggregation": aggregation}
    return roi_warp(FEATURES, jnp.asarray(boxes, jnp.float32), **options)


def test_the_average_of_warped_samples_is_roi_align_of_the_box_rounded_to_cells():
    boxes = np.array([[[3.1, 5.7, 17.8, 20.9]], [[6, 10, 25.9, 10]]])
    rounded = np.array([[[1, 1, 5, 6]], [[2, 3, 7, 4]]], np.float32)  # in cells, the last included
    expected = roi_align(
        FEATURES, rounded, output_size=(3, 2), spatial_scale=1.0, sampling_ratio=2, aligned=True
    )
    np.testing.assert_allclose(warp(boxes, "average"), expected, atol=1e-6)


def test_warping_moves_with_whole_cells_only():
    moved = [[[5, 5, 20, 20]], [[9, 2, 30, 13]]]
    np.testing.assert_array_equal(warp(moved, "max"), warp(np.array(moved) + 0.9, "max"))
    assert np.all(warp(moved, "max") != warp(np.array(moved) + 4, "max"))


def test_the_maximum_of_warped_samples_is_that_of_a_grid_twice_as_fine():
    boxes = BOXES[:, :1]
    # Box [0.775, 1.425, 7.55, 5.225] in cells → [1, 1, 9, 6], of which each bin has 2 × 2 samples.
    rounded = np.array([[[1, 1, 9, 6]], [[2, 2, 3, 3]]], np.float32)
    samples = roi_align(
        FEATURES, rounded, output_size=(6, 4), spatial_scale=1.0, sampling_ratio=1, aligned=True
    )
    expected = np.asarray(samples).reshape(2, 1, 3, 2, 2, 2, 3).max((3, 5))
    np.testing.assert_allclose(warp(boxes, "max"), expected, atol=1e-6)


def test_an_unknown_aggregation_is_named():
    with pytest.raises(ValueError, match="'sum' is not 'max' or 'average'"):
        warp(BOXES, "sum")
