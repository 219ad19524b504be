import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import layers
from segjax.models.backbones.xception import (
    Xception,
    XceptionBlock,
    xception41,
    xception65,
    xception71,
)
from segjax.models.normalization import BatchNorm
from segjax.ops.convolution import convolution
from segjax.ops.initializers import truncated_normal
from tests.models.subsampling import run
from tests.variables import random_variables

TINY = Xception(
    stem_features=(2, 4),
    entry_features=(4, 6, 8),
    middle_blocks=2,
    exit_features=((8, 10, 10), (12, 12, 14)),
)


def described(model, **arguments):
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)

    def initialize(images):
        return model.init_with_output(jax.random.key(0), images, **arguments)

    return jax.eval_shape(initialize, images)


def separable_parameters(inputs, outputs):
    """Parameters of a separable convolution: two kernels, and scales and biases of two norms."""
    return 9 * inputs + 2 * inputs + inputs * outputs + 2 * outputs


def block_parameters(inputs, features, has_shortcut):
    channels = [inputs, *features]
    count = sum(separable_parameters(a, b) for a, b in zip(channels[:-1], features, strict=True))
    return count + has_shortcut * (inputs * features[2] + 2 * features[2])


# A classifier of 1000 classes adds 2,049,000: timm lists 27, 40 and 42 million.
@pytest.mark.parametrize(
    ("model", "entry", "middle", "parameters"),
    [
        (xception41(), (128, 256, 728), 8, 24_920_560),
        (xception65(), (128, 256, 728), 16, 37_867_312),
        (xception71(), (128, 256, 256, 728, 728), 16, 40_289_736),
    ],
)
def test_numbers_of_parameters_are_those_of_the_figures_table(model, entry, middle, parameters):
    count = 9 * 3 * 32 + 2 * 32 + 9 * 32 * 64 + 2 * 64
    for inputs, features in zip((64, *entry[:-1]), entry, strict=True):
        count += block_parameters(inputs, (features,) * 3, has_shortcut=True)
    count += middle * block_parameters(728, (728,) * 3, has_shortcut=False)
    count += block_parameters(728, (728, 1024, 1024), has_shortcut=True)
    count += block_parameters(1024, (1536, 1536, 2048), has_shortcut=False)
    _, variables = described(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count == parameters


def test_parameters_are_named_by_flow_and_block():
    _, variables = described(TINY)
    params = variables["params"]
    assert set(params) == {
        *("stem1", "stem2", "entry_block1", "entry_block2", "entry_block3"),
        *("middle_block1", "middle_block2", "exit_block1", "exit_block2"),
    }
    separable = {"separable1", "separable2", "separable3"}
    for name, block in params.items():
        if not name.startswith("stem"):
            has_shortcut = name.startswith("entry") or name == "exit_block1"
            assert set(block) == (separable | {"shortcut"} if has_shortcut else separable)
    layer = params["exit_block2"]["separable3"]
    assert layer["depthwise"]["kernel"].shape == (3, 3, 1, 12)
    assert layer["depthwise_norm"]["scale"].shape == (12,)
    assert layer["pointwise"]["convolution"]["kernel"].shape == (1, 1, 12, 14)
    assert layer["pointwise"]["norm"]["scale"].shape == (14,)


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "expected"),
    [
        # For each block after the stem, the stride of its third depthwise convolution and the rates
        # of all three. A block ends with its stride.
        (32, None, ([2, 2, 2, 1, 1, 2, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1])),
        (16, None, ([2, 2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [2, 2, 2])),
        (8, None, ([2, 2, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2], [4, 4, 4])),
        (16, (1, 2, 4), ([2, 2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [2, 4, 8])),
        (8, (1, 1, 1), ([2, 2, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2], [4, 4, 4])),
    ],
)
def test_strides_and_rates_of_the_depthwise_convolutions(
    monkeypatch, output_stride, multi_grid, expected
):
    calls = []

    def spy(inputs, kernel, *, stride, rate, groups, **options):
        if groups > 1:
            assert groups == inputs.shape[-1]
            calls.append((stride, rate))
        return convolution(inputs, kernel, stride=stride, rate=rate, groups=groups, **options)

    monkeypatch.setattr(layers, "convolution", spy)
    described(TINY, output_stride=output_stride, multi_grid=multi_grid)
    strides, rates, last = expected
    assert [stride for stride, _ in calls] == [s for third in strides for s in (1, 1, third)]
    assert [rate for _, rate in calls] == [r for rate in rates for r in (rate,) * 3] + last


def test_low_level_is_before_the_stride_from_4_to_8():
    assert described(TINY, output_stride=16)[0]["low_level"].shape == (1, 17, 17, 6)
    # In Xception-71 it comes from the third block, as the second takes no stride.
    model = xception71(middle_blocks=0, entry_features=(4, 6, 10, 8, 8), width_multiplier=0.5)
    assert described(model)[0]["low_level"].shape == (1, 17, 17, 5)


@pytest.mark.parametrize(
    ("shortcut", "activate_inside"), [("convolution", False), ("sum", False), ("none", True)]
)
def test_a_block_is_three_separable_convolutions_and_a_shortcut(shortcut, activate_inside):
    features, rates = (3, 5, 4), (1, 2, 1)
    block = XceptionBlock(features, rates=rates, shortcut=shortcut, activate_inside=activate_inside)
    x = np.random.default_rng(0).normal(size=(1, 6, 7, 4)).astype(np.float32)
    variables = random_variables(block, x)

    def at(*names):
        return {
            key: functools.reduce(lambda tree, name: tree.get(name, {}), names, tree)
            for key, tree in variables.items()
        }

    @jax.jit
    def expected(x):
        y, maps = x, []
        for i in (1, 2, 3):
            scope, channels = f"separable{i}", y.shape[-1]
            y = y if activate_inside else nn.relu(y)
            depthwise = layers.Convolution(channels, rate=rates[i - 1], groups=channels)
            y = depthwise.apply(at(scope, "depthwise"), y)
            y = BatchNorm().apply(at(scope, "depthwise_norm"), y)
            y = nn.relu(y) if activate_inside else y
            pointwise = layers.ConvolutionNorm(features[i - 1], 1, activation=None)
            y = pointwise.apply(at(scope, "pointwise"), y)
            y = nn.relu(y) if activate_inside else y
            maps.append(y)
        projection = layers.ConvolutionNorm(4, 1, activation=None)
        if shortcut == "convolution":
            y = y + projection.apply(at("shortcut"), x)
        return (y + x if shortcut == "sum" else y), maps[1]

    for found, wanted in zip(run(block, variables, x), expected(x), strict=True):
        assert ((found < 0).any()) == (not activate_inside)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_initial_kernels_are_tensorflows_truncated_normal():
    initializers = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, layers.Convolution):
            initializers.append(context.module.kernel_init)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        described(TINY)
    assert len(initializers) == 2 + 6 * 7 + 4
    assert set(initializers) == {truncated_normal(0.09)}
    kernel = truncated_normal(0.09)(jax.random.key(0), (100, 100))
    assert np.abs(kernel).max() <= 0.18
    assert abs(kernel.std() / (0.09 * 0.8796) - 1) < 0.05  # a normal cut off at 2 deviations
