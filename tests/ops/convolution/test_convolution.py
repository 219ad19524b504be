"""The fast forms against XLA's own convolutions, values and gradients."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from segjax.ops import convolution, up_convolution
from segjax.ops.convolution import forms, taps, tpu

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def assert_same_values_and_gradients(ours, theirs, *arguments):
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), atol=1e-5)
    both = [
        jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argnums=(0, 1))(*arguments)
        for f in (ours, theirs)
    ]
    for mine, reference in zip(*both, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_up_convolution_equals_xlas_transposed_convolution():
    inputs = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 4, 6))

    def transposed(x, k):
        # lax leaves the kernel un-flipped, which is the flip of the textbook's definition.
        return lax.conv_transpose(x, k[::-1, ::-1], (2, 2), "VALID", dimension_numbers=DIMENSIONS)

    assert_same_values_and_gradients(up_convolution, transposed, inputs, kernel)


def test_up_convolution_writes_each_pixel_into_its_own_block():
    inputs = np.zeros((1, 2, 2, 1), np.float32)
    inputs[0, 1, 0, 0] = 3
    kernel = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1, 1)
    expected = np.zeros((4, 4))
    expected[2:, :2] = [[3, 6], [9, 12]]
    np.testing.assert_array_equal(up_convolution(inputs, kernel)[0, :, :, 0], expected)


def plain(inputs, kernel, *, stride, rate, groups, padding="SAME"):
    """XLA's own convolution, padded by rate · (size − 1) / 2, the larger part at the end."""
    spans = [rate * (side - 1) * (padding == "SAME") for side in kernel.shape[:2]]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        (stride, stride),
        [(span // 2, span - span // 2) for span in spans],
        rhs_dilation=(rate, rate),
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


# height, width, kernel size, channels in and out, stride, rate, groups
CASES = {
    "1×1 with a stride": (5, 8, 1, 3, 4, 2, 1, 1),
    "3×3": (6, 5, 3, 4, 5, 1, 1, 1),
    "3×3 with 16 channels": (9, 8, 3, 16, 18, 1, 1, 1),
    "few channels at a large rate": (7, 9, 3, 4, 5, 1, 6, 1),
    "strided and dilated": (9, 8, 3, 4, 5, 2, 2, 1),
    "many channels": (6, 7, 3, 128, 130, 1, 1, 1),
    "many channels, dilated": (12, 11, 3, 128, 128, 1, 2, 1),
    "taps mostly outside": (9, 7, 3, 128, 132, 1, 4, 1),
    "all taps but one outside": (4, 5, 3, 128, 128, 1, 6, 1),
    "rows outside, columns inside": (2, 16, 3, 128, 128, 1, 3, 1),
    "even kernel": (6, 7, 2, 128, 128, 1, 1, 1),
    "even kernel, dilated, mostly outside": (7, 6, 4, 128, 128, 1, 4, 1),
    "even kernel that misses a single pixel": (1, 1, 4, 128, 128, 1, 3, 1),
    "large kernel": (5, 4, 5, 128, 128, 1, 2, 1),
    "depthwise": (6, 7, 3, 8, 8, 1, 1, 8),
    "depthwise, dilated": (6, 7, 3, 8, 8, 1, 4, 8),
    "depthwise with a stride": (7, 8, 3, 8, 8, 2, 1, 8),
    "depthwise with a stride, dilated": (7, 8, 3, 8, 8, 2, 2, 8),
    "depthwise on one pixel": (1, 1, 3, 8, 8, 1, 2, 8),
    "grouped": (6, 5, 3, 8, 4, 1, 2, 2),
    "more rows than a block of the kernel gradient has": (40, 60, 3, 16, 18, 1, 1, 1),
    "such rows, dilated": (33, 41, 3, 16, 16, 1, 3, 1),
    "rows wider than a block": (3, 1100, 2, 16, 16, 1, 1, 1),
    "many channels, even kernel, dilated": (9, 8, 2, 130, 128, 1, 2, 1),
    "many channels without padding": (9, 8, 3, 128, 129, 1, 2, 1, "VALID"),
    "tiles": (38, 27, 3, 256, 258, 1, 1, 1),
    "tiles, dilated": (36, 30, 3, 256, 256, 1, 3, 1),
    "tiles, dilated, beyond the map": (39, 30, 3, 258, 256, 1, 2, 1),
    "tiles without padding": (36, 34, 3, 256, 256, 1, 1, 1, "VALID"),
    "tiles without padding, dilated": (39, 36, 3, 256, 256, 1, 2, 1, "VALID"),
    "without padding": (40, 61, 3, 16, 18, 1, 1, 1, "VALID"),
    "without padding, dilated": (12, 11, 3, 16, 16, 1, 2, 1, "VALID"),
    "without padding, few channels": (12, 11, 3, 2, 3, 1, 2, 1, "VALID"),
    "without padding, with a stride": (12, 11, 3, 16, 16, 2, 1, 1, "VALID"),
    "without padding, depthwise": (12, 11, 3, 8, 8, 1, 1, 8, "VALID"),
}


def arrays(height, width, size, channels, features, stride, rate, groups, padding="SAME"):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, height, width, channels)).astype(np.float32)
    fan_in = size * size * channels // groups
    kernel = rng.normal(size=(size, size, channels // groups, features)) / np.sqrt(fan_in)
    options = {"stride": stride, "rate": rate, "groups": groups, "padding": padding}
    return inputs, kernel.astype(np.float32), options


def values_and_gradients(form, inputs, kernel, options):
    """The output, and what a fixed random gradient of it gives for inputs and kernel."""
    form = functools.partial(form, **options)
    output = jax.eval_shape(form, inputs, kernel)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=output.shape), output.dtype)

    def run(inputs, kernel, weights):
        output, pull_back = jax.vjp(form, inputs, kernel)
        return output, *pull_back(weights)

    return jax.jit(run)(inputs, kernel, weights)


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES)
def test_every_form_equals_xlas_convolution_with_its_gradients(case):
    inputs, kernel, options = arrays(*CASES[case])
    found = values_and_gradients(convolution, inputs, kernel, options)
    expected = values_and_gradients(plain, inputs, kernel, options)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.dtype == np.float32
        scale = max(float(np.abs(reference).max()), 1e-3)
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("tiles")])
def test_tiles_are_products_of_matrices_alone(case):
    inputs, kernel, options = arrays(*CASES[case])
    form = functools.partial(convolution, **options)
    program = compiled(lambda x, k: jax.vjp(form, x, k)[1](form(x, k)), inputs, kernel)
    assert not shapes_of_convolutions(program)
    assert "dot(" in program


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def shapes_of_convolutions(program: str) -> list[tuple[int, ...]]:
    found = re.findall(r"f32\[([\d,]+)\]\S* convolution\(", program)
    return [tuple(map(int, shape.split(","))) for shape in found]


def test_an_impulse_through_tiles_is_the_mirrored_kernel():
    inputs, kernel, _ = arrays(*CASES["tiles"])
    inputs[:] = 0
    inputs[1, 7, 4, 2] = 1
    expected = np.zeros((*inputs.shape[:3], kernel.shape[3]))
    expected[1, 6:9, 3:6] = kernel[::-1, ::-1, 2]
    np.testing.assert_allclose(convolution(inputs, kernel), expected, atol=1e-6)


@pytest.mark.parametrize(
    "case", ["taps mostly outside", "many channels", "depthwise, dilated", "tiles"]
)
def test_under_vmap_each_image_is_convolved_as_alone(case):
    inputs, kernel, options = arrays(*CASES[case])
    kernels = np.stack([kernel, 2 * kernel])

    def alone(x, k):
        return convolution(x[None], k, **options)[0]

    found = jax.jit(jax.vmap(alone))(inputs, kernels)
    for place in range(2):
        np.testing.assert_allclose(found[place], alone(inputs[place], kernels[place]), atol=1e-5)


@pytest.mark.parametrize("case", ["taps mostly outside", "many channels", "depthwise", "tiles"])
def test_bfloat16_stays_bfloat16_and_is_summed_in_float32(case):
    inputs, kernel, options = arrays(*CASES[case])
    low = [jnp.asarray(array, jnp.bfloat16) for array in (inputs, kernel)]
    found = values_and_gradients(convolution, *low, options)
    exact = values_and_gradients(plain, *(x.astype(np.float32) for x in low), options)
    assert {array.dtype for array in found} == {jnp.dtype(jnp.bfloat16)}
    rounding = 2.0**-8 * float(np.abs(exact[0]).max())
    np.testing.assert_allclose(found[0].astype(np.float32), exact[0], rtol=0, atol=rounding)


def test_inputs_and_kernel_of_different_dtypes_are_refused():
    inputs, kernel, options = arrays(*CASES["3×3"])
    with pytest.raises(TypeError, match="inputs of float32 with a kernel of bfloat16"):
        convolution(inputs, jnp.asarray(kernel, jnp.bfloat16), **options)


@pytest.mark.parametrize(
    "case", ["taps mostly outside", "many channels, dilated", "depthwise", "tiles"]
)
def test_the_hessian_equals_that_of_xlas_convolution(case):
    inputs, kernel, options = arrays(*CASES[case])
    direction = np.random.default_rng(2).normal(size=kernel.shape).astype(np.float32)

    def hessian_times_direction(form):
        def gradient(kernel):
            return jax.grad(lambda k: (form(inputs, k, **options) ** 3).sum())(kernel)

        return jax.jit(lambda k: jax.jvp(gradient, (k,), (direction,))[1])(kernel)

    found, expected = hessian_times_direction(convolution), hessian_times_direction(plain)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


MODE_CASES = [
    "taps mostly outside",
    "many channels, dilated",
    "depthwise with a stride",
    "tiles",
    "without padding",
]


@pytest.mark.parametrize("case", MODE_CASES)
def test_forward_mode_equals_that_of_xlas_convolution(case):
    inputs, kernel, options = arrays(*CASES[case])
    rng = np.random.default_rng(2)
    tangents = [rng.normal(size=x.shape).astype(np.float32) for x in (inputs, kernel)]

    def derivative(form):
        form = functools.partial(form, **options)
        return jax.jit(lambda *tangents: jax.jvp(form, (inputs, kernel), tangents))(*tangents)

    for mine, reference in zip(derivative(convolution), derivative(plain), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("case", MODE_CASES)
def test_second_derivatives_agree_in_all_orders_of_the_modes(case):
    inputs, kernel, options = arrays(*CASES[case])
    direction = np.random.default_rng(2).normal(size=kernel.shape).astype(np.float32)

    def loss(form, kernel):
        return jnp.sum(form(inputs, kernel, **options) ** 3)

    def slope(form, kernel):
        return jax.jvp(functools.partial(loss, form), (kernel,), (direction,))[1]

    def product(form, kernel):
        return jnp.vdot(jax.grad(loss, 1)(form, kernel), direction)

    reference = jax.jit(jax.grad(slope, 1), static_argnums=0)(plain, kernel)
    for order in (slope, product):
        found = jax.jit(jax.grad(order, 1), static_argnums=0)(convolution, kernel)
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("mapped", [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("case", ["3×3 with 16 channels", "depthwise", "taps mostly outside"])
def test_gradients_of_a_mapped_convolution_are_those_of_each(case, mapped):
    inputs, kernel, options = arrays(*CASES[case])
    arguments = [
        np.stack([x, 2 * x, -x]) if axis == 0 else x
        for x, axis in zip((inputs, kernel), mapped, strict=True)
    ]

    def loss(form, inputs, kernel):
        form = functools.partial(form, **options)
        return jnp.sum(jax.vmap(form, mapped)(inputs, kernel) ** 2)

    found, expected = (
        jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)(form, *arguments)
        for form in (convolution, plain)
    )
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_a_row_of_the_jacobian_is_the_gradient_of_that_output():
    inputs, kernel, options = arrays(4, 3, 3, 16, 16, 1, 1, 1)
    form = functools.partial(convolution, kernel=kernel, **options)
    forward, reverse = jax.jacfwd(form)(inputs), jax.jacrev(form)(inputs)
    np.testing.assert_allclose(forward, reverse, atol=1e-6)
    gradient = jax.grad(lambda x: form(x)[1, 2, 1, 5])(inputs)
    np.testing.assert_allclose(forward[1, 2, 1, 5], gradient, atol=1e-6)


@pytest.mark.parametrize("case", ["many channels", "taps mostly outside", "1×1 with a stride"])
def test_the_derivative_is_that_of_each_device_in_a_map_over_devices(case):
    inputs, kernel, options = arrays(*CASES[case])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("devices",))
    spec = jax.sharding.PartitionSpec

    def loss(form, kernel, inputs):
        return jax.lax.psum(jnp.sum(form(inputs, kernel, **options) ** 2), "devices")

    found, expected = (
        jax.jit(
            jax.grad(
                jax.shard_map(
                    functools.partial(loss, form),
                    mesh=mesh,
                    in_specs=(spec(), spec("devices")),
                    out_specs=spec(),
                ),
                argnums=(0, 1),
            )
        )(kernel, inputs)
        for form in (convolution, plain)
    )
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        *("depthwise", "depthwise, dilated", "depthwise with a stride"),
        *("depthwise with a stride, dilated", "depthwise on one pixel"),
        *("depthwise, even kernel with a stride", "1×1 with a stride"),
    ],
)
def test_the_forms_for_tpus_equal_xlas_own(case, dtype, monkeypatch):
    even = (8, 9, 2, 8, 8, 2, 1, 8)
    inputs, kernel, options = arrays(*CASES.get(case, even))
    operands = []
    monkeypatch.setattr(forms, "convolve", lambda *given: operands.extend(given) or inputs)
    convolution(jnp.asarray(inputs, dtype), jnp.asarray(kernel, dtype), **options)
    inputs, kernel, of = operands
    output = taps.plain(inputs, kernel, of)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=output.shape), dtype)
    tolerance = 1e-6 if dtype == np.float32 else 0.02  # bfloat16 has 8 bits
    for found, expected in (
        (tpu.forward(inputs, kernel, of), output),
        (
            tpu.input_gradient(inputs, kernel, gradient, of),
            taps.plain_input_gradient(inputs, kernel, gradient, of),
        ),
        (
            tpu.kernel_gradient(inputs, kernel, gradient, of),
            taps.plain_kernel_gradient(inputs, kernel, gradient, of),
        ),
    ):
        assert found.dtype == expected.dtype == dtype
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


CASES_WITH_FORMS = ["taps mostly outside", "many channels", "depthwise", "1×1 with a stride"]


@pytest.mark.parametrize("case", CASES_WITH_FORMS)
def test_on_a_gpu_the_derivative_is_xlas_own(case):
    inputs, kernel, options = arrays(*CASES[case])

    def derivative(inputs, kernel):
        form = functools.partial(convolution, **options)
        return jax.jvp(form, (inputs, kernel), (inputs, kernel))

    lowered = jax.jit(derivative).trace(inputs, kernel).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in lowered.as_text()


def test_a_function_exported_for_two_platforms_has_the_forms_of_both():
    inputs, kernel, options = arrays(*CASES["many channels"])
    form = functools.partial(convolution, **options)

    def gradients(inputs, kernel):
        return jax.vjp(form, inputs, kernel)[1](form(inputs, kernel))

    exported = export.export(jax.jit(gradients), platforms=["cpu", "cuda"])(inputs, kernel)
    program = exported.mlir_module()
    assert "stablehlo.case" in program
    assert "stablehlo.dot_general" in program
    for mine, reference in zip(
        exported.call(inputs, kernel), jax.jit(gradients)(inputs, kernel), strict=True
    ):
        np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


@pytest.mark.parametrize(
    ("case", "platform"),
    [*((case, "cuda") for case in CASES_WITH_FORMS), *((c, "tpu") for c in CASES_WITH_FORMS[:3])],
)
def test_other_platforms_keep_their_own_convolution(case, platform):
    program = lowered_gradients(case, platform)
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in program


def test_on_tpus_the_last_axis_of_a_depthwise_convolution_is_dilated():
    """XLA:TPU cuts this axis into strips otherwise."""
    program = lowered_gradients("depthwise", "tpu")
    assert program.count("stablehlo.convolution") == 3
    assert len(re.findall(r"rhs_dilate = \[1, 1, 2\]", program)) == 2


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_strided_point_is_a_product_except_on_gpus(platform):
    program = lowered_gradients("1×1 with a stride", platform)
    assert program.count("stablehlo.dot_general") == 3
    assert "stablehlo.convolution" not in program


def lowered_gradients(case, platform) -> str:
    """The program of a convolution and its two gradients on a platform."""
    inputs, kernel, options = arrays(*CASES[case])

    def loss(inputs, kernel):
        return convolution(inputs, kernel, **options).sum()

    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return both.trace(inputs, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("open_axes", ["batch, height, width", "batch, {}, {}"])
@pytest.mark.parametrize("case", ["taps mostly outside", "tiles"])
def test_sizes_may_be_open_in_an_exported_function(case, open_axes):
    inputs, kernel, options = arrays(*CASES[case])
    inputs = inputs[:, :20]  # one image is too small for the form of "tiles", and two are not
    axes = open_axes.format(*inputs.shape[1:3])
    shape = export.symbolic_shape(f"{axes}, {inputs.shape[3]}")
    exported = export.export(jax.jit(lambda x: convolution(x, kernel, **options)))
    found = exported(jax.ShapeDtypeStruct(shape, jnp.float32)).call(inputs)
    np.testing.assert_allclose(found, plain(inputs, kernel, **options), atol=1e-5)


@pytest.mark.parametrize("case", [*CASES_WITH_FORMS, "tiles"])
def test_the_forms_can_be_turned_off(case, monkeypatch):
    inputs, kernel, options = arrays(*CASES[case])
    fast = values_and_gradients(convolution, inputs, kernel, options)
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "plain")
    slow = values_and_gradients(convolution, inputs, kernel, options)
    expected = values_and_gradients(plain, inputs, kernel, options)
    chex.assert_trees_all_equal(slow, expected)
    chex.assert_trees_all_close(fast, slow, atol=1e-5 * float(np.abs(expected[2]).max()))


def test_an_unknown_setting_of_the_forms_is_refused(monkeypatch):
    inputs, kernel, options = arrays(*CASES["many channels"])
    monkeypatch.setenv("SEGJAX_CONVOLUTION", "slow")
    with pytest.raises(ValueError, match="SEGJAX_CONVOLUTION='slow'; expected 'plain'"):
        convolution(inputs, kernel, **options)
