"""The accelerators' gradient of RoIAlign against the CPU's, and what it costs other boxes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import roi_align_tiles
from segjax.ops.roi_align import _scattered_gradient
from segjax.ops.roi_align_samples import Grid
from segjax.ops.roi_align_tiles import TILE, gradient_of_tiles

SIZES = ((40, 53), (20, 27), (10, 14))  # no multiples of a tile, one level smaller than a tile


def random_boxes(number, seed=0):
    """Returns starts and lengths in cells, and levels: [2, number, ...]."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 3, (2, number)).astype(np.int32)
    sizes = np.array(SIZES, np.float32)[levels]
    start = rng.uniform(-0.3, 1, (2, number, 2)).astype(np.float32) * sizes
    length = rng.uniform(0, 0.6, (2, number, 2)).astype(np.float32) * sizes
    odd = [
        ([0, 0], [0, 0]),  # empty
        ([5, -3], [0.3, 80]),  # thin, over the whole width
        ([-2, 7], [60, 0.5]),  # thin, over the whole height
        ([-10, -10], [190, 170]),  # larger than the map; no sample is where reading ends
        ([100, 100], [5, 5]),  # outside
        ([9, 9], [-4, -3]),  # reversed
        ([np.nan, 3], [2, np.inf]),
        ([15, 15], [1, 1]),  # where four tiles meet
    ]
    for place, (first, extent) in enumerate(odd):
        start[:, place], length[:, place] = first, extent
    return start, length, levels


@functools.partial(jax.jit, static_argnames=("form", "ratio", "bins", "batch"))
def pull_back(
    gradient, start, length, levels, form=gradient_of_tiles, ratio=2, bins=(3, 2), batch=2
):
    return form(gradient, start, length, levels, options=Grid(batch, SIZES, bins, ratio))


def cotangent(number, dtype=np.float32):
    values = np.random.default_rng(5).normal(size=(2, number, 3, 2, 4))
    return jnp.asarray(values, dtype)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(roi_align_tiles, "BINS_OF_PRODUCT", 30)  # five boxes
    monkeypatch.setattr(roi_align_tiles, "TILES_AT_ONCE", 8)


@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_it_equals_the_form_of_the_cpu(ratio):
    boxes, gradient = random_boxes(60), cotangent(60)
    expected = pull_back(gradient, *boxes, form=_scattered_gradient, ratio=ratio)
    found = pull_back(gradient, *boxes, ratio=ratio)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bfloat16_gradients_are_summed_in_float32():
    start, length, levels = random_boxes(60)
    gradient = cotangent(60, jnp.bfloat16)
    exact = pull_back(gradient.astype(jnp.float32), start, length, levels)
    found = pull_back(gradient, start, length, levels)
    assert found.dtype == jnp.bfloat16
    # Weights, their products and the sum are rounded: four times by at most 2^-8.
    terms = pull_back(jnp.abs(gradient).astype(jnp.float32), start, length, levels)
    error = np.abs(found.astype(jnp.float32) - exact)
    assert np.all(error <= 4.1 * 2.0**-8 * terms + 1e-6)


def test_many_copies_of_a_box_add_up_in_bfloat16():
    start = jnp.full((2, 600, 2), 1.5, jnp.float32)  # each bin reads one cell
    length = jnp.tile(jnp.asarray([3.0, 2.0], jnp.float32), (2, 600, 1))
    gradient = jnp.ones((2, 600, 3, 2, 1), jnp.bfloat16)
    found = pull_back(gradient, start, length, jnp.zeros((2, 600), jnp.int32), ratio=1)
    of_level = np.zeros((2, *SIZES[0], 1))
    of_level[:, 2:5, 2:4] = 600  # a sum in bfloat16 would miss some
    cells = SIZES[0][0] * SIZES[0][1]
    np.testing.assert_array_equal(found[:, :cells].astype(jnp.float32), of_level.reshape(2, -1, 1))


def test_a_batch_of_two_is_two_batches_of_one():
    boxes, gradient = random_boxes(60), cotangent(60)
    together = pull_back(gradient, *boxes)
    for image in range(2):
        alone = pull_back(*(x[image : image + 1] for x in (gradient, *boxes)), batch=1)
        np.testing.assert_allclose(together[image], alone[0], atol=1e-5)


def test_vmap_equals_one_call_for_each():
    boxes = [np.stack(x) for x in zip(random_boxes(20), random_boxes(20, seed=1), strict=True)]
    gradient = jnp.stack([cotangent(20), 2 * cotangent(20)])
    found = jax.vmap(pull_back)(gradient, *boxes)
    for index in range(2):
        expected = pull_back(gradient[index], *(x[index] for x in boxes))
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


@pytest.mark.parametrize("place", [0, 39])
def test_a_gradient_that_is_not_finite_stays_in_the_tiles_of_its_box(place):
    start, length, levels = random_boxes(40)
    start[0, place], length[0, place], levels[0, place] = [20.0, 20.0], [6.0, 6.0], 0
    clean = cotangent(40)
    broken = clean.at[0, place].set(jnp.nan)
    found = np.array(pull_back(broken, start, length, levels))
    expected = np.array(pull_back(clean, start, length, levels))
    cells = SIZES[0][0] * SIZES[0][1]
    of_level = found[0, :cells].reshape(*SIZES[0], -1)
    assert np.isnan(of_level[20:26, 20:26]).all()
    for array in (found, expected):  # the box lies within the second tile in both directions
        of_level = array[0, :cells].reshape(*SIZES[0], -1)
        of_level[TILE : 2 * TILE, TILE : 2 * TILE] = 0
    np.testing.assert_array_equal(found, expected)


def test_no_boxes_give_a_gradient_of_zero():
    found = pull_back(cotangent(0), *(x[:, :0] for x in random_boxes(9)))
    cells = sum(height * width for height, width in SIZES)
    np.testing.assert_array_equal(found, np.zeros((2, cells, 4)))
