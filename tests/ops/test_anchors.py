"""Anchors against hand-computed ones: sizes, shapes, order and origin."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.anchors import base_anchors, grid_anchors


def test_base_anchors_have_the_area_and_the_ratio_of_height_to_width():
    anchors = base_anchors((32, 64), (0.5, 1.0, 2.0))
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose(np.sqrt(width * height), [32, 32, 32, 64, 64, 64], rtol=1e-6)
    np.testing.assert_allclose(height / width, [0.5, 1, 2, 0.5, 1, 2], rtol=1e-6)
    np.testing.assert_array_equal(anchors[:, :2], -anchors[:, 2:])


def test_rounded_base_anchors_are_those_of_torchvision():
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    np.testing.assert_array_equal(base_anchors((32,), (0.5, 1.0, 2.0), rounded=True), expected)


def test_half_pixels_are_rounded_to_even():
    np.testing.assert_array_equal(base_anchors((21,), (1.0,), rounded=True), [[-10, -10, 10, 10]])


def test_anchors_lie_in_the_order_of_a_map_of_height_width_and_anchors():
    anchors = grid_anchors((2, 3), stride=8, sizes=(4, 16), aspect_ratios=(1.0,))
    anchors = np.asarray(anchors).reshape(2, 3, 2, 4)
    for i, j, a in np.ndindex(2, 3, 2):
        x, y, half = 8 * j, 8 * i, (2, 8)[a]
        np.testing.assert_array_equal(anchors[i, j, a], [x - half, y - half, x + half, y + half])


def test_an_offset_of_half_a_stride_puts_anchors_at_the_centres_of_cells():
    anchors = grid_anchors((1, 2), stride=8, sizes=(8,), aspect_ratios=(1.0,), offset=0.5)
    np.testing.assert_array_equal(anchors, [[0, 0, 8, 8], [8, 0, 16, 8]])


def test_a_pair_of_strides_is_vertical_and_horizontal():
    anchors = grid_anchors((2, 2), stride=(10, 30), sizes=(2,), aspect_ratios=(1.0,))
    assert anchors.dtype == jnp.float32
    np.testing.assert_array_equal(anchors[:, :2] + 1, [[0, 0], [30, 0], [0, 10], [30, 10]])


@pytest.mark.parametrize(
    ("sizes", "ratios", "name"), [((), (1,), "sizes"), ((32,), (1, 0), "aspect_ratios")]
)
def test_sizes_and_ratios_must_be_there_and_above_zero(sizes, ratios, name):
    with pytest.raises(ValueError, match=f"{name}=.*above zero"):
        base_anchors(sizes, ratios)


def test_the_anchors_of_a_pyramid_equal_torchvisions():
    record = np.load(Path(__file__).parents[1] / "fixtures/torchvision_maskrcnn_resnet50_fpn.npz")
    height, width = record["input"].shape[:2]
    levels = [record[f"rpn_objectness_{level}"].shape[1:3] for level in range(5)]

    @jax.jit
    def pyramid():
        return [
            grid_anchors(
                size,
                stride=(height // size[0], width // size[1]),
                sizes=(32 * 2**level,),
                aspect_ratios=(0.5, 1.0, 2.0),
                rounded=True,
            )
            for level, size in enumerate(levels)
        ]

    np.testing.assert_array_equal(np.concatenate(pyramid()), record["anchors"])
