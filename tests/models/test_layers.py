import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.layers import (
    Convolution,
    ConvolutionNorm,
    SeparableConvolution,
    Unit,
    atrous_units,
    check_multi_grid,
    max_pool,
)
from segjax.models.normalization import BatchNorm, GroupNorm
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.ops.devices import AXIS_NAME
from tests.models.subsampling import run
from tests.variables import random_variables


def images(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def slow_convolution(x, kernel, *, stride=1, rate=1, groups=1):
    """Convolves one tap of one output position at a time."""
    height, width, channels = x.shape
    size, _, per_group, features = kernel.shape
    out = np.zeros((-(-height // stride), -(-width // stride), features))
    for i, j, a, b in np.ndindex(*out.shape[:2], size, size):
        row = i * stride + (a - size // 2) * rate
        column = j * stride + (b - size // 2) * rate
        if 0 <= row < height and 0 <= column < width:
            for group in range(groups):
                inputs = slice(group * per_group, (group + 1) * per_group)
                outputs = slice(group * features // groups, (group + 1) * features // groups)
                out[i, j, outputs] += x[row, column, inputs] @ kernel[a, b, :, outputs]
    assert channels == groups * per_group
    return out


def slow_norm(x, affine, statistics, epsilon=1e-5):
    normalized = (x - statistics["mean"]) / np.sqrt(statistics["var"] + epsilon)
    return normalized * affine["scale"] + affine["bias"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2, "use_bias": True},
        {"kernel_size": 3, "rate": 2},
        {"kernel_size": 3, "rate": 5, "groups": 4},
        {"kernel_size": 3, "stride": 2, "groups": 2},
        {"kernel_size": 7, "stride": 2},
        {"kernel_size": 1, "stride": 2, "use_bias": True},
    ],
)
def test_convolution_agrees_with_numpy(attributes):
    x = images(1, 7, 8, 4)
    layer = Convolution(4, **attributes)
    variables = random_variables(layer, x)
    params = jax.device_get(variables["params"])
    assert ("bias" in params) == attributes.get("use_bias", False)
    options = {k: v for k, v in attributes.items() if k in ("stride", "rate", "groups")}
    expected = slow_convolution(x[0], params["kernel"], **options) + params.get("bias", 0)
    np.testing.assert_allclose(run(layer, variables, x)[0], expected, atol=1e-5)


def test_convolution_norm_is_convolution_then_norm_then_activation():
    x = images(2, 5, 6, 3)
    layer = ConvolutionNorm(4)
    variables = random_variables(layer, x)
    assert set(variables["params"]) == {"convolution", "norm"}
    params, statistics = jax.device_get((variables["params"], variables["batch_stats"]))
    convolved = slow_convolution(x[0], params["convolution"]["kernel"])
    normalized = slow_norm(convolved, params["norm"], statistics["norm"])
    assert (normalized < 0).any()
    np.testing.assert_allclose(run(layer, variables, x)[0], np.maximum(normalized, 0), atol=1e-5)
    linear = layer.clone(activation=None)
    np.testing.assert_allclose(run(linear, variables, x)[0], normalized, atol=1e-5)


def test_without_a_norm_the_convolution_has_a_bias():
    x = images(1, 4, 4, 3)
    layer = ConvolutionNorm(2, norm=None)
    variables = random_variables(layer, x)
    assert set(variables) == {"params"}
    assert set(variables["params"]) == {"convolution"}
    params = jax.device_get(variables["params"]["convolution"])
    expected = slow_convolution(x[0], params["kernel"]) + params["bias"]
    assert params["bias"].all()
    assert (expected < 0).any()
    np.testing.assert_allclose(run(layer, variables, x)[0], np.maximum(expected, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("activate_depthwise", "normalize_depthwise"), [(True, True), (False, True), (False, False)]
)
def test_a_separable_convolution_is_a_depthwise_and_a_pointwise_one(
    activate_depthwise, normalize_depthwise
):
    x = images(1, 6, 7, 4)
    layer = SeparableConvolution(
        3,
        rate=2,
        activate_depthwise=activate_depthwise,
        normalize_depthwise=normalize_depthwise,
    )
    variables = random_variables(layer, x)
    params, statistics = jax.device_get((variables["params"], variables["batch_stats"]))
    assert ("depthwise_norm" in params) == normalize_depthwise
    y = slow_convolution(x[0], params["depthwise"]["kernel"], rate=2, groups=4)
    if normalize_depthwise:
        y = slow_norm(y, params["depthwise_norm"], statistics["depthwise_norm"])
    if activate_depthwise:
        y = np.maximum(y, 0)
    pointwise = params["pointwise"]
    y = slow_convolution(y, pointwise["convolution"]["kernel"])
    y = slow_norm(y, pointwise["norm"], statistics["pointwise"]["norm"])
    assert (y < 0).any()
    np.testing.assert_allclose(run(layer, variables, x)[0], np.maximum(y, 0), atol=1e-5)
    if not activate_depthwise:
        linear = layer.clone(activation=None)
        np.testing.assert_allclose(run(linear, variables, x)[0], y, atol=1e-5)


def test_no_activation_means_none_after_the_depthwise_convolution_either():
    x = images(1, 5, 5, 2)
    layer = SeparableConvolution(3, activation=None)
    variables = random_variables(layer, x)
    plain = layer.clone(activate_depthwise=False)
    np.testing.assert_array_equal(run(layer, variables, x), run(plain, variables, x))


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_layers_compute_in_their_dtype_with_float32_variables(dtype):
    x = images(2, 5, 5, 3)
    for layer in (ConvolutionNorm(4, dtype=dtype), SeparableConvolution(4, dtype=dtype)):
        variables = random_variables(layer, x)
        found, updated = jax.eval_shape(
            lambda v, layer=layer: layer.apply(v, x, True, mutable=["batch_stats"]), variables
        )
        assert found.dtype == (dtype or jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}
    exact = run(layer.clone(dtype=None), variables, x)
    tolerance = 0.05 * float(jnp.abs(exact).max())
    found = run(layer, variables, x).astype(jnp.float32)
    np.testing.assert_allclose(found, exact, atol=tolerance)


def train(norm, variables, x):
    out, updated = jax.jit(lambda v: norm.apply(v, x, True, mutable=["batch_stats"]))(variables)
    return out, updated["batch_stats"]


def test_batch_norm_normalizes_by_the_batch_and_keeps_a_share_of_the_running_statistics():
    x = images(4, 3, 3, 2) * 3 + 1
    norm = BatchNorm(momentum=0.75, epsilon=1e-3)
    variables = random_variables(norm, x)
    before, affine = jax.device_get((variables["batch_stats"], variables["params"]))
    out, after = train(norm, variables, x)
    batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    np.testing.assert_allclose(out, slow_norm(x, affine, batch, epsilon=1e-3), atol=1e-5)
    for key in ("mean", "var"):
        expected = 0.75 * before[key] + 0.25 * batch[key]
        np.testing.assert_allclose(after[key], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "refused"),
    [((1, 1, 1, 4), True), ((2, 1, 1, 4), False), ((1, 1, 2, 4), False), ((1, 4), True)],
)
def test_batch_norm_refuses_to_train_on_a_single_value_per_channel(shape, refused):
    x, norm = images(*shape), BatchNorm()
    variables = random_variables(norm, x)
    run(norm, variables, x)  # prediction takes it
    train(BatchNorm(frozen=True), variables, x)
    if not refused:
        train(norm, variables, x)
        return
    with pytest.raises(SingleValueStatistics, match="has one value per channel"):
        train(norm, variables, x)


def test_batch_norm_counts_the_values_on_all_devices():
    x, norm = images(2, 1, 1, 1, 4), BatchNorm()
    variables = random_variables(norm, x[0])

    def mapped(axis_name, x):
        def apply(x):
            return norm.apply(variables, x, True, mutable=["batch_stats"])[0]

        return jax.pmap(apply, axis_name=axis_name)(x)

    mapped(AXIS_NAME, x)
    with pytest.raises(SingleValueStatistics):
        mapped(AXIS_NAME, x[:1])


def test_a_frozen_batch_norm_does_in_training_what_it_does_in_evaluation():
    x = images(4, 3, 3, 2) * 3 + 1
    norm = BatchNorm(frozen=True)
    variables = random_variables(norm, x)
    out, after = train(norm, variables, x)
    np.testing.assert_array_equal(out, run(norm, variables, x))
    for key in ("mean", "var"):
        np.testing.assert_array_equal(after[key], variables["batch_stats"][key])


def test_group_norm_normalizes_each_example_over_its_positions_and_a_group_of_channels():
    x = images(2, 3, 4, 6) * 3 + 1
    norm = GroupNorm(num_groups=2)
    variables = random_variables(norm, x)
    assert set(variables) == {"params"}  # no running statistics
    affine, found = jax.device_get(variables["params"]), run(norm, variables, x)
    for example in range(2):
        for group in (slice(0, 3), slice(3, 6)):
            part = x[example, :, :, group]
            statistics = {"mean": part.mean(), "var": part.var()}
            expected = slow_norm(part, {k: v[group] for k, v in affine.items()}, statistics)
            np.testing.assert_allclose(found[example, :, :, group], expected, atol=1e-5)
    in_training = jax.jit(lambda v: norm.apply(v, x, True))(variables)
    np.testing.assert_allclose(in_training, found, atol=1e-5)


@pytest.mark.parametrize(("size", "first"), [(2, 0), (3, -1)])
@pytest.mark.parametrize(("stride", "rate"), [(2, 1), (1, 2)])
def test_max_pooling_agrees_with_numpy_on_negative_maps(size, first, stride, rate):
    x = images(2, 7, 8, 3) - 5
    expected = np.full((2, -(-7 // stride), -(-8 // stride), 3), -np.inf, np.float32)
    for i, j, a, b in np.ndindex(*expected.shape[1:3], size, size):
        row, column = i * stride + (first + a) * rate, j * stride + (first + b) * rate
        if 0 <= row < 7 and 0 <= column < 8:
            expected[:, i, j] = np.maximum(expected[:, i, j], x[:, row, column])
    pool = jax.jit(lambda x: max_pool(x, size=size, stride=stride, rate=rate))
    np.testing.assert_array_equal(pool(x), expected)


def test_the_gradient_of_max_pooling_goes_to_each_windows_maximum():
    x = np.array([[4, 1, 0], [2, 9, 3], [5, 6, 7]], np.float32).reshape(1, 3, 3, 1)
    weights = jnp.array([[1.0, 10], [100, 1000]]).reshape(1, 2, 2, 1)
    gradient = jax.jit(jax.grad(lambda x: (max_pool(x, size=2, stride=2) * weights).sum()))(x)
    # The windows' maxima are 9, 3, 6 and 7.
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 0, 0], [0, 1, 10], [0, 100, 1000]])


def test_max_pooling_keeps_bfloat16():
    assert max_pool(jnp.ones((1, 4, 4, 1), jnp.bfloat16), size=3, stride=2).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [
        (32, [(4, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1)]),
        (16, [(4, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 2)]),
        (8, [(4, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 4), (1, 4, 4)]),
    ],
)
def test_a_stride_that_is_not_taken_becomes_a_rate_of_what_follows(output_stride, expected):
    units = atrous_units([4, 1, 2, 1, 2, 2, 1], output_stride=output_stride)
    assert units == [Unit(*unit) for unit in expected]


def test_a_multi_grid_has_a_rate_for_each_unit():
    check_multi_grid(None, length=3)
    check_multi_grid((1, 2, 4), length=3)
    with pytest.raises(ValueError, match=r"multi_grid has 3 rates .* got \(1, 2\)"):
        check_multi_grid((1, 2), length=3)


@pytest.mark.parametrize(
    ("size", "padding", "options", "flaxs"),
    [
        (1, "SAME", {}, {}),
        (3, "SAME", {}, {}),
        (3, "VALID", {}, {}),
        (2, "SAME", {"rate": 2}, {"kernel_dilation": 2}),
        (3, "VALID", {"stride": 2}, {"strides": 2}),
    ],
)
def test_a_convolution_is_flaxs_with_the_same_parameters(size, padding, options, flaxs):
    inputs = jax.random.normal(jax.random.key(0), (2, 9, 8, 16))
    ours = Convolution(18, kernel_size=size, padding=padding, use_bias=True, **options)
    flax = nn.Conv(18, (size, size), padding=padding, kernel_init=ours.kernel_init, **flaxs)
    variables = flax.init(jax.random.key(1), inputs)
    chex.assert_trees_all_equal(variables, ours.init(jax.random.key(1), inputs))
    np.testing.assert_allclose(
        ours.apply(variables, inputs), flax.apply(variables, inputs), atol=1e-5
    )
