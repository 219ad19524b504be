import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import layers
from segjax.models.backbones.mobilenet_v2 import InvertedResidual, MobileNetV2, multiplied
from segjax.ops.convolution import convolution
from tests.models.subsampling import run
from tests.variables import random_variables


def described(model, **arguments):
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)

    def initialize(images):
        return model.init_with_output(jax.random.key(0), images, **arguments)

    return jax.eval_shape(initialize, images)


@pytest.mark.parametrize(
    ("features", "multiplier", "divisor", "expected"),
    [
        (32, 0.5, 8, 16),
        (32, 0.35, 8, 16),  # 11.2 rounds to 8, which is below its 90 %
        (24, 0.35, 8, 8),
        (24, 1.4, 8, 32),
        (320, 1.4, 8, 448),
        (16, 0.1, 8, 8),
        (24, 0.5, 1, 12),
        (24, 0.35, 1, 8),
    ],
)
def test_channels_are_multiples_of_the_divisor_and_at_least_nine_tenths(
    features, multiplier, divisor, expected
):
    assert multiplied(features, multiplier, divisor) == expected


def test_the_bottlenecks_of_table_2():
    found, variables = described(MobileNetV2())
    params = variables["params"]
    assert set(params) == {"stem", *(f"expanded_conv_{i}" for i in range(17))}
    assert params["stem"]["convolution"]["kernel"].shape == (3, 3, 3, 32)
    blocks = [params[f"expanded_conv_{i}"] for i in range(17)]
    projected = [block["project"]["convolution"]["kernel"].shape[-1] for block in blocks]
    assert projected == [16, 24, 24, 32, 32, 32, *[64] * 4, *[96] * 3, *[160] * 3, 320]
    expanded = [block["depthwise"]["convolution"]["kernel"].shape for block in blocks]
    inputs = [32, *projected[:-1]]
    assert expanded == [(3, 3, 1, 6 * n if i else n) for i, n in enumerate(inputs)]
    assert ["expand" in block for block in blocks] == [False] + [True] * 16
    assert {key: value.shape[-1] for key, value in found.items()} == {
        "features": 320,
        "auxiliary": 96,
        "low_level": 144,
        "stem": 16,
        "stage1": 24,
        "stage2": 32,
        "stage3": 96,
        "stage4": 320,
    }


# The published dilations of TensorFlow DeepLab's checkpoints, per depthwise convolution.
@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "strided", "rates"),
    [
        (32, None, [1, 3, 6, 13], [1] * 17),
        (16, None, [1, 3, 6], [1] * 14 + [2] * 3),
        (8, None, [1, 3], [1] * 7 + [2] * 7 + [4] * 3),
        (16, (1, 1, 2, 1), [1, 3, 6], [1] * 13 + [2, 2, 4, 2]),
    ],
)
def test_strides_and_rates_of_the_depthwise_convolutions(
    monkeypatch, output_stride, multi_grid, strided, rates
):
    calls = []

    def spy(inputs, kernel, *, stride, rate, groups, **options):
        if groups > 1:
            assert groups == inputs.shape[-1]
            calls.append((stride, rate))
        return convolution(inputs, kernel, stride=stride, rate=rate, groups=groups, **options)

    monkeypatch.setattr(layers, "convolution", spy)
    described(MobileNetV2(), output_stride=output_stride, multi_grid=multi_grid)
    assert [i for i, (stride, _) in enumerate(calls) if stride == 2] == strided
    assert [rate for _, rate in calls] == rates


@pytest.mark.parametrize("add_input", [True, False])
def test_a_bottleneck_expands_convolves_and_projects_linearly(add_input):
    block = InvertedResidual(4, expansion=3, stride=1, rate=2, add_input=add_input)
    x = 8 * np.random.default_rng(0).normal(size=(1, 6, 7, 4)).astype(np.float32)
    variables = random_variables(block, x)

    @jax.jit
    def expected(x):
        def layer(x, features, name, kernel_size=1, **options):
            part = {key: variables[key][name] for key in variables}
            layer = layers.ConvolutionNorm(features, kernel_size, activation=None, **options)
            return layer.apply(part, x)

        y = jnp.clip(layer(x, 12, "expand"), 0, 6)
        depthwise = jnp.clip(layer(y, 12, "depthwise", 3, rate=2, groups=12), 0, 6)
        y = layer(depthwise, 4, "project")
        return (y + x if add_input else y), depthwise

    found, depthwise = run(block, variables, x)
    assert (found < 0).any()
    assert (depthwise == 6).any()
    for one, other in zip((found, depthwise), expected(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_low_level_is_the_last_depthwise_map_at_stride_4():
    model = MobileNetV2(stages=((1, 8, 1, 1), (2, 8, 3, 2), (2, 16, 1, 2), (2, 16, 2, 2)))
    images = np.random.default_rng(0).normal(size=(1, 33, 33, 3)).astype(np.float32)
    variables = random_variables(model, images)
    apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    found, state = apply(variables, images)
    outputs = state["intermediates"]["expanded_conv_3"]["__call__"][0]
    np.testing.assert_array_equal(found["low_level"], outputs[1])
    assert found["low_level"].shape == (1, 9, 9, 16)


def test_each_stride_gives_the_output_of_its_last_bottleneck():
    model = MobileNetV2(width_multiplier=0.1)
    images = np.random.default_rng(0).normal(size=(1, 65, 65, 3)).astype(np.float32)
    variables = random_variables(model, images)
    apply = jax.jit(lambda v, x: model.apply(v, x, capture_intermediates=True))
    found, state = apply(variables, images)
    # The bottlenecks before those with stride 2 in table 2, and the last.
    for name, last, side in zip(
        ("stem", "stage1", "stage2", "stage3", "stage4"),
        (0, 2, 5, 12, 16),
        (33, 17, 9, 5, 3),
        strict=True,
    ):
        expected, _ = state["intermediates"][f"expanded_conv_{last}"]["__call__"][0]
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].shape[1:3] == (side, side)
    np.testing.assert_array_equal(found["features"], found["stage4"])


def test_shapes_are_those_of_tensorflows_variables_at_width_one_half(real_data):
    weights = np.load(real_data / "weights" / "deeplabv3_mobilenetv2_dm05_voc.npz")
    expected = {
        name.removeprefix("MobilenetV2/"): weights[name].shape
        for name in weights.files
        if name.startswith("MobilenetV2/") and "weights" in name
    }
    _, variables = described(MobileNetV2(width_multiplier=0.5))
    found = {}
    for module, parts in variables["params"].items():
        if module == "stem":
            found["Conv/weights"] = parts["convolution"]["kernel"].shape
            continue
        scope = module.removesuffix("_0")
        for part, leaves in parts.items():
            height, width, inputs, outputs = leaves["convolution"]["kernel"].shape
            if part == "depthwise":
                found[f"{scope}/depthwise/depthwise_weights"] = (height, width, outputs, inputs)
            else:
                found[f"{scope}/{part}/weights"] = (height, width, inputs, outputs)
    assert found == expected
