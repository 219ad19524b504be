"""RoIAlign against loops over samples, its gradients against the transpose, the level rules."""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad

from segjax.ops.linear import define_transposes, linear_operator
from segjax.ops.roi_align import multilevel_roi_align, pyramid_levels, roi_align
from segjax.ops.roi_align_samples import interpolation_matrices


def sample(image, y, x):
    """One bilinear sample of [height, width, channels]: 0 beyond one cell outside, else clamped."""
    height, width, channels = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
    lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def oracle(image, box, output_size, spatial_scale, sampling_ratio, aligned):
    """Mask R-CNN, section 3, for one box of one image, as torchvision's CPU kernel loops."""
    rows, columns = output_size
    x, y, x_max, y_max = np.asarray(box, np.float64) * spatial_scale - (0.5 if aligned else 0)
    height, width = y_max - y, x_max - x
    if not aligned:
        height, width = max(height, 1), max(width, 1)
    per_row = sampling_ratio or math.ceil(height / rows)
    per_column = sampling_ratio or math.ceil(width / columns)
    result = np.zeros((rows, columns, image.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            for a in range(per_row):
                for b in range(per_column):
                    sample_y = y + height * (i + (a + 0.5) / per_row) / rows
                    sample_x = x + width * (j + (b + 0.5) / per_column) / columns
                    result[i, j] += sample(image, sample_y, sample_x)
    return result / max(per_row * per_column, 1)


FEATURES = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype(np.float32)
BOXES = np.array(
    [
        [
            [3.1, 5.7, 30.2, 20.9],
            [0, 0, 48, 36],  # the whole map
            [40, 2, 80, 30],  # ends far outside
            [-30, -9, 6, 5],  # begins far outside
        ],
        [
            [8.3, 8.3, 8.9, 9.0],  # a fraction of a cell
            [100, 100, 120, 140],  # wholly outside
            [-1.5, 1, 45, 3.9],  # long and thin
            [0, 0, 0, 0],
        ],
    ],
    np.float32,
)


@functools.partial(jax.jit, static_argnums=(2, 3))
def align(features, boxes, sampling_ratio, aligned):
    return roi_align(
        features,
        boxes,
        output_size=(3, 2),
        spatial_scale=0.25,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_values_equal_those_of_loops_over_samples(sampling_ratio, aligned):
    expected = [
        [oracle(image, box, (3, 2), 0.25, sampling_ratio, aligned) for box in of_image]
        for image, of_image in zip(FEATURES.astype(np.float64), BOXES, strict=True)
    ]
    aligned_features = align(FEATURES, BOXES, sampling_ratio, aligned)
    np.testing.assert_allclose(aligned_features, expected, atol=3e-5)


PYRAMID = [
    np.random.default_rng(level).normal(size=(2, *size, 3)).astype(np.float32)
    for level, size in enumerate([(32, 48), (16, 24), (8, 12)])
]
LARGE_BOXES = np.array(
    [
        [[3, 5, 40, 50], [10, 10, 130, 125], [0, 0, 192, 128], [0, 0, 192, 8.5]],
        [[0, 0, 0, 0], [60, 8, 190, 119], [5, 60, 180, 64], [2, 3, 90.5, 77.25]],
    ],
    np.float32,
)
RANDOM_BOXES = np.random.default_rng(9).uniform(-20, 200, (2, 70, 4)).astype(np.float32)
RANDOM_BOXES[..., 2:] = RANDOM_BOXES[..., :2] + np.abs(RANDOM_BOXES[..., 2:]) * 0.9


@functools.partial(jax.jit, static_argnums=(2, 3))
def align_levels(pyramid, boxes, sampling_ratio, rule):
    return multilevel_roi_align(
        pyramid,
        boxes,
        strides=(4, 8, 16),
        output_size=2,
        sampling_ratio=sampling_ratio,
        aligned=rule == "detectron2",
        level_rule=rule,
    )


@pytest.mark.parametrize(("sampling_ratio", "rule"), [(0, "detectron2"), (2, "torchvision")])
def test_each_box_is_sampled_from_the_level_that_its_area_asks_for(sampling_ratio, rule):
    pooled = align_levels(PYRAMID, LARGE_BOXES, sampling_ratio, rule)
    seen = set()
    for image, number in np.ndindex(2, 4):
        box = LARGE_BOXES[image, number].astype(np.float64)
        ratio = math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / 112
        level = min(max(math.floor(3 + math.log2(ratio + 1e-8)), 2), 4)
        seen.add(level)
        features = PYRAMID[level - 2][image].astype(np.float64)
        aligned = rule == "detectron2"
        expected = oracle(features, box, (2, 2), 0.5**level, sampling_ratio, aligned)
        np.testing.assert_allclose(pooled[image, number], expected, atol=5e-5)
    assert seen == {2, 3}


@pytest.mark.parametrize("form", ["_scattered_gradient", "gradient_of_tiles"])
@pytest.mark.parametrize(("sampling_ratio", "rule"), [(0, "detectron2"), (2, "torchvision")])
def test_the_gradient_is_the_transpose_in_the_form_of_every_platform(
    form, sampling_ratio, rule, monkeypatch
):
    module = importlib.import_module("segjax.ops.roi_align")  # the package has its function
    form = getattr(module, form)
    operator = linear_operator("gradient", cpu=form, default=form)
    monkeypatch.setitem(ad.primitive_transposes, module._pooled, None)  # is put back afterwards
    define_transposes(module._pooled, {0: (operator, (0, 1, 2, 3))}, 4)
    monkeypatch.setattr(module, "BINS_IN_CACHE", 240)  # three chunks of 24 boxes

    def pool(pyramid):
        return align_levels.__wrapped__(pyramid, RANDOM_BOXES, sampling_ratio, rule)

    @jax.jit
    def pull_back(gradient):
        return jax.vjp(pool, PYRAMID)[1](gradient)[0]

    rng = np.random.default_rng(1)
    gradient = rng.normal(size=(2, 70, 2, 2, 3)).astype(np.float32)
    pulled = pull_back(gradient)
    for level in range(3):  # <A x, g> = <x, Aᵀ g> for maps x that are zero but for one level
        other = [np.zeros_like(x) for x in PYRAMID]
        other[level] = rng.normal(size=other[level].shape).astype(np.float32)
        expected = np.vdot(align_levels(other, RANDOM_BOXES, sampling_ratio, rule), gradient)
        np.testing.assert_allclose(np.vdot(other[level], pulled[level]), expected, rtol=1e-3)


def test_the_derivative_in_the_features_pools_their_tangent():
    tangent = np.random.default_rng(2).normal(size=FEATURES.shape).astype(np.float32)
    pool = functools.partial(align, boxes=BOXES, sampling_ratio=0, aligned=True)
    found = jax.jvp(pool, (jnp.asarray(FEATURES),), (jnp.asarray(tangent),))[1]
    np.testing.assert_allclose(found, pool(tangent), atol=1e-6)


def test_boxes_get_no_gradient():
    gradient = jax.grad(lambda boxes: align(FEATURES, boxes, 2, True).sum())(jnp.asarray(BOXES))
    np.testing.assert_array_equal(gradient, np.zeros_like(BOXES))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_vmap_equals_one_image_at_a_time(sampling_ratio):
    def of_one(features, box):
        return align(features[None], box[None], sampling_ratio, True)[0]

    together = align(FEATURES, BOXES, sampling_ratio, True)
    np.testing.assert_allclose(jax.vmap(of_one)(FEATURES, BOXES), together, atol=1e-6)


def test_no_boxes_give_no_features_and_a_gradient_of_zero():
    boxes = jnp.zeros((2, 0, 4), jnp.float32)
    pooled, pull_back = jax.vjp(lambda x: align(x, boxes, 0, True), jnp.asarray(FEATURES))
    assert pooled.shape == (2, 0, 3, 2, 3)
    np.testing.assert_array_equal(pull_back(pooled)[0], np.zeros_like(FEATURES))


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan])
def test_a_box_that_is_not_finite_ends_and_harms_no_other(value):
    broken = BOXES.copy()
    broken[0, 1, 2:] = value
    pooled = align(FEATURES, broken, 0, True)
    kept = np.array([[True, False, True, True], [True] * 4])
    np.testing.assert_allclose(pooled[kept], align(FEATURES, BOXES, 0, True)[kept], atol=1e-6)


def test_bfloat16_features_are_summed_in_float32():
    features = jnp.asarray(FEATURES, jnp.bfloat16)
    exact = align(features.astype(jnp.float32), BOXES, 2, True)
    pooled = align(features, BOXES, 2, True)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
def test_matrices_of_rows_and_columns_reproduce_the_features(sampling_ratio):
    y, x, y_max, x_max = 1.25, -2.5, 7.75, 6.0
    axes = ((y, y_max - y, 3, 9), (x, x_max - x, 2, 12))
    rows, columns = (
        interpolation_matrices(
            jnp.float32(start),
            jnp.float32(length),
            jnp.arange(cells, dtype=jnp.int32),
            bins=bins,
            cells=jnp.int32(cells),
            sampling_ratio=sampling_ratio,
        )
        for start, length, bins, cells in axes
    )
    image = FEATURES[0].astype(np.float64)
    expected = oracle(image, [x, y, x_max, y_max], (3, 2), 1, sampling_ratio, False)
    np.testing.assert_allclose(
        np.einsum("iy,yxc,jx->ijc", rows, image, columns), expected, atol=1e-5
    )


def test_boxes_of_exactly_112_times_powers_of_two_go_to_the_upper_level_by_both_rules():
    sides = jnp.asarray([0, 10, 111.9, 112, 223.9, 224, 447.9, 448, 5000], jnp.float32)
    boxes = jnp.stack([sides, sides, 2 * sides, 2 * sides], axis=-1)
    for rule in ("detectron2", "torchvision"):
        levels = pyramid_levels(boxes, lowest=2, highest=5, rule=rule)
        np.testing.assert_array_equal(levels, [2, 2, 2, 3, 3, 4, 4, 5, 5])


def test_torchvision_lifts_areas_just_below_a_border():
    side = 224 * 2 ** (-5e-7)
    box = jnp.asarray([0, 0, side, side], jnp.float32)
    assert pyramid_levels(box, lowest=2, highest=5, rule="detectron2") == 3
    assert pyramid_levels(box, lowest=2, highest=5, rule="torchvision") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_size": 0}, "output_size is one or two positive numbers; got 0"),
        ({"sampling_ratio": -1}, "0 for adaptive; got -1"),
        ({"boxes": BOXES[:1]}, r"2 images need boxes \[2, boxes, 4\]; got \(1, 4, 4\)"),
    ],
)
def test_bad_options_are_named(change, message):
    options = {"output_size": 2, "sampling_ratio": 2, "boxes": BOXES, **change}
    with pytest.raises(ValueError, match=message):
        roi_align(FEATURES, **options, spatial_scale=1.0, aligned=True)


@pytest.mark.parametrize(
    ("strides", "rule", "message"),
    [
        ((8, 16, 64), "detectron2", r"each twice the one before; got \(8, 16, 64\)"),
        ((), "detectron2", r"got \(\)"),
        ((8, 16), "detectron2", "3 maps with 2 strides"),
        ((8, 16, 32), "round", "'round' is not 'detectron2' or 'torchvision'"),
    ],
)
def test_bad_pyramids_are_named(strides, rule, message):
    options = {"output_size": 2, "sampling_ratio": 2, "aligned": True, "level_rule": rule}
    with pytest.raises(ValueError, match=message):
        multilevel_roi_align(PYRAMID, BOXES, strides=strides, **options)
