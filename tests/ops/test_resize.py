"""Bilinear resizing against loops, and where the corners lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from segjax.ops import resize, resize_bilinear
from segjax.ops.linear import define_transposes, linear_operator
from segjax.ops.resize import (
    _columns_by_row,
    _multiplied,
    _repeated,
    _resized_columns,
    _resized_columns_gradient,
    _sums,
    upsample_nearest,
)


def oracle(x, size, align_corners):
    """Each new pixel from its four neighbours, in float64."""

    def place(i, old, new):
        if align_corners:
            return i * (old - 1) / (new - 1) if new > 1 else 0.0
        return min(max((i + 0.5) * old / new - 0.5, 0), old - 1)

    batch, height, width, channels = x.shape
    result = np.zeros((batch, *size, channels))
    for i in range(size[0]):
        y = place(i, height, size[0])
        top, bottom = int(y), min(int(y) + 1, height - 1)
        for j in range(size[1]):
            z = place(j, width, size[1])
            left, right = int(z), min(int(z) + 1, width - 1)
            upper = x[:, top, left] * (1 - z + left) + x[:, top, right] * (z - left)
            lower = x[:, bottom, left] * (1 - z + left) + x[:, bottom, right] * (z - left)
            result[:, i, j] = upper * (1 - y + top) + lower * (y - top)
    return result


SIZES = [
    ((5, 4), (17, 13)),
    ((5, 4), (9, 4)),
    ((9, 7), (4, 3)),
    ((1, 1), (3, 5)),
    ((6, 6), (1, 1)),
    ((3, 1), (7, 2)),
]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_values_equal_those_of_loops_and_gradients_their_transpose(old, new, align_corners):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *old, 3)).astype(np.float32)
    resize = jax.jit(lambda x: resize_bilinear(x, new, align_corners=align_corners))
    np.testing.assert_allclose(resize(x), oracle(x, new, align_corners), atol=1e-5)
    gradient = rng.normal(size=(2, *new, 3)).astype(np.float32)
    (pulled,) = jax.vjp(resize, x)[1](gradient)
    other = rng.normal(size=x.shape).astype(np.float32)
    # <A x', g> = <x', Aᵀ g>
    np.testing.assert_allclose(
        np.vdot(oracle(other, new, align_corners), gradient), np.vdot(other, pulled), rtol=1e-4
    )


@pytest.mark.parametrize("options", [(4, 13, True), (7, 3, False), (1, 5, True), (6, 1, False)])
def test_both_forms_resize_columns_alike_and_the_gpus_has_no_transposition(options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, options[0], 5)).astype(np.float32)
    gradient = rng.normal(size=(2, 3, options[1], 5)).astype(np.float32)
    expected = oracle(x, (3, options[1]), options[2])
    by_row = functools.partial(_columns_by_row, contracted=1)
    for form, transpose in (
        (_resized_columns, _resized_columns_gradient),
        (_columns_by_row, by_row),
    ):
        np.testing.assert_allclose(form(x, options=options), expected, atol=1e-6)
        pulled = transpose(gradient, options=options)
        np.testing.assert_allclose(np.vdot(expected, gradient), np.vdot(x, pulled), rtol=1e-5)

    def loss(x):
        return (resize_bilinear(x, (3, options[1]), align_corners=options[2]) ** 2).sum()

    traced = jax.jit(jax.grad(loss)).trace(x)
    found = {
        platform: "stablehlo.transpose" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert found == {"cpu": True, "cuda": False, "tpu": True}


def test_aligned_corners_put_33_positions_on_every_16th_pixel_of_513():
    x = np.random.default_rng(0).normal(size=(1, 33, 33, 2)).astype(np.float32)
    resized = resize_bilinear(x, (513, 513), align_corners=True)
    np.testing.assert_array_equal(resized[:, ::16, ::16], x)


def test_by_hand_to_twice_the_size():
    x = np.array([0.0, 1, 2, 3], np.float32).reshape(1, 1, 4, 1)
    edges = resize_bilinear(x, (1, 8), align_corners=False)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(np.ravel(edges), expected, atol=1e-6)
    corners = resize_bilinear(x, (1, 7), align_corners=True)
    np.testing.assert_allclose(np.ravel(corners), np.arange(7) / 2, atol=1e-6)


def test_bfloat16_maps_are_interpolated_in_float32():
    x = jnp.asarray(np.linspace(100, 101, 9), jnp.bfloat16).reshape(1, 3, 3, 1)
    resized = resize_bilinear(x, (17, 17), align_corners=True)
    assert resized.dtype == jnp.bfloat16
    exact = oracle(np.asarray(x, np.float64), (17, 17), True)
    np.testing.assert_allclose(np.asarray(resized, np.float64), exact, rtol=2.0**-8)


def test_the_same_size_is_left_as_it_is():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_bilinear(x, (4, 5), align_corners=True), x)


def test_sizes_may_be_open_in_an_exported_function():
    def enlarge(x):
        return resize_bilinear(x, (2 * x.shape[1], 3 * x.shape[2]), align_corners=True)

    shape = export.symbolic_shape("batch, height, width, 2")
    exported = export.export(jax.jit(enlarge))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), oracle(x, (6, 12), True), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(10, 6), (9, 6), (10, 5)])
def test_nearest_neighbours_are_repeated_and_cropped_in_both_forms(size, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 4)), dtype)
    expected = np.repeat(np.repeat(np.asarray(x), 2, axis=1), 2, axis=2)
    found = jax.jit(upsample_nearest, static_argnums=1)(x, size)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected[:, : size[0], : size[1]])
    products = jax.jit(functools.partial(_multiplied, options=()))(x)
    np.testing.assert_array_equal(products, expected)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), dtype)
    sums, products = (_sums(form)(gradient, options=()) for form in (_repeated, _multiplied))
    tolerance = 1e-6 if dtype == np.float32 else 0.05  # bfloat16 has 8 bits
    np.testing.assert_allclose(*(np.float32(y) for y in (sums, products)), atol=tolerance)


def test_doubling_has_derivatives_in_both_modes_and_its_form_on_each_platform():
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 2)).astype(np.float32)

    def loss(x):
        return (upsample_nearest(x, (3, 6)) ** 3).sum()

    def plain(x):
        return (x.repeat(2, axis=1).repeat(2, axis=2)[:, :3, :6] ** 3).sum()

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        np.testing.assert_allclose(derivative(loss)(x), derivative(plain)(x), rtol=1e-5)
    each = jax.vmap(jax.grad(loss))(np.stack([x, 2 * x]))
    np.testing.assert_allclose(each, [jax.grad(plain)(x), jax.grad(plain)(2 * x)], rtol=1e-5)
    traced = jax.jit(jax.grad(loss)).trace(x)
    for platform, products in (("cpu", 0), ("cuda", 0), ("tpu", 4)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert program.count("stablehlo.dot_general") == products


@pytest.mark.parametrize("form", [_repeated, _multiplied])
def test_doubling_has_its_gradient_in_a_map_over_devices(form, monkeypatch):
    doubled = linear_operator("double", default=form)
    summed = linear_operator("double_transposed", default=_sums(form))
    define_transposes(doubled, {0: (summed, (0,))}, 1)
    monkeypatch.setattr(resize, "_doubled", doubled)
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("devices",))
    spec = jax.sharding.PartitionSpec

    def loss(x):
        return jax.lax.psum((upsample_nearest(x, (6, 4)) ** 2).sum(), "devices")

    mapped = jax.shard_map(loss, mesh=mesh, in_specs=spec("devices"), out_specs=spec())
    np.testing.assert_allclose(jax.jit(jax.grad(mapped))(x), 8 * x, rtol=1e-6)
