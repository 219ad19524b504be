import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import layers
from segjax.models.backbones.resnet import ResidualBlock, ResNet, resnet50, resnext101
from segjax.ops.convolution import convolution
from tests.models.subsampling import run
from tests.variables import random_variables

TINY = ResNet(stage_sizes=(1, 2, 2, 3), width=2)


def parameter_paths(model):
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


@pytest.fixture
def taken(monkeypatch):
    """Traces a model and returns (stride, rate) of each convolution with this kernel size."""

    def run(model, *, kernel_size=3, **arguments):
        calls = []

        def spy(inputs, kernel, *, stride, rate, **options):
            if kernel.shape[0] == kernel_size:
                calls.append((stride, rate))
            return convolution(inputs, kernel, stride=stride, rate=rate, **options)

        monkeypatch.setattr(layers, "convolution", spy)
        images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
        initialize = lambda images: model.init(jax.random.key(0), images, **arguments)  # noqa: E731
        jax.eval_shape(initialize, images)
        return calls

    return run


def test_parameters_are_named_by_stage_and_block():
    paths = parameter_paths(TINY)
    assert paths["stem/convolution/kernel"] == (7, 7, 3, 2)
    assert paths["stem/norm/scale"] == (2,)
    assert paths["stage1_block1/shortcut/convolution/kernel"] == (1, 1, 2, 8)
    assert paths["stage4_block3/conv1/convolution/kernel"] == (1, 1, 64, 16)
    assert paths["stage4_block3/conv2/convolution/kernel"] == (3, 3, 16, 16)
    assert paths["stage4_block3/conv3/norm/bias"] == (64,)
    assert "stage4_block3/shortcut/convolution/kernel" not in paths
    blocks = {path.split("/")[0] for path in paths} - {"stem"}
    assert blocks == {
        "stage1_block1",
        *("stage2_block1", "stage2_block2"),
        *("stage3_block1", "stage3_block2"),
        *("stage4_block1", "stage4_block2", "stage4_block3"),
    }


def test_basic_blocks_need_no_shortcut_in_the_first_stage():
    paths = parameter_paths(TINY.clone(block="basic"))
    shortcuts = {path.split("/")[0] for path in paths if "shortcut" in path}
    assert shortcuts == {"stage2_block1", "stage3_block1", "stage4_block1"}
    assert not any("conv3" in path for path in paths)


def test_the_deep_stem_has_three_convolutions_and_twice_the_channels():
    paths = parameter_paths(TINY.clone(stem="3x3x3"))
    found = [paths[f"stem{i}/convolution/kernel"] for i in (1, 2, 3)]
    assert found == [(3, 3, 3, 2), (3, 3, 2, 2), (3, 3, 2, 4)]


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "stage3", "stage4"),
    [
        (32, None, [(2, 1), (1, 1)], [(2, 1), (1, 1), (1, 1)]),
        (16, None, [(2, 1), (1, 1)], [(1, 1), (1, 2), (1, 2)]),
        (8, None, [(1, 1), (1, 2)], [(1, 2), (1, 4), (1, 4)]),
        (16, (1, 1, 1), [(2, 1), (1, 1)], [(1, 2), (1, 2), (1, 2)]),
        # DeepLab v3, section 3.2.1
        (16, (1, 2, 4), [(2, 1), (1, 1)], [(1, 2), (1, 4), (1, 8)]),
        (8, (1, 2, 4), [(1, 1), (1, 2)], [(1, 4), (1, 8), (1, 16)]),
        (32, (1, 2, 4), [(2, 1), (1, 1)], [(2, 1), (1, 2), (1, 4)]),
    ],
)
def test_strides_and_rates_of_the_3x3_convolutions(
    taken, output_stride, multi_grid, stage3, stage4
):
    found = taken(TINY, output_stride=output_stride, multi_grid=multi_grid)
    assert found == [(1, 1), (2, 1), (1, 1), *stage3, *stage4]


def test_a_stride_in_the_1x1_convolution_leaves_the_3x3_on_the_coarser_grid(taken):
    model = TINY.clone(stride_in="1x1")
    assert taken(model, output_stride=16) == [(1, 1)] * 5 + [(1, 2)] * 3
    # "conv1" and "shortcut" of each stage's first block; stage 4 takes no stride.
    strides = [stride for stride, _ in taken(model, kernel_size=1, output_stride=16)]
    assert strides.count(2) == 4


def test_basic_blocks_keep_the_rate_before_in_the_convolution_with_the_stride(taken):
    found = taken(TINY.clone(block="basic"), output_stride=16)
    assert found[-6:] == [(1, 1), *[(1, 2)] * 5]
    assert found[2:4] == [(2, 1), (1, 1)]


def test_cascaded_stages_double_the_rate_and_repeat_the_multi_grid(taken):
    model = TINY.clone(cascaded_stages=3)
    found = taken(model, output_stride=16, multi_grid=(1, 2, 1))[-12:]
    assert found == [(1, stage * unit) for stage in (2, 4, 8, 16) for unit in (1, 2, 1)]
    found = taken(model, output_stride=16)[-12:]
    assert [rate for _, rate in found] == [1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16]


def test_cascaded_stages_are_copies_of_stage_4_behind_it():
    paths = parameter_paths(TINY.clone(cascaded_stages=2))
    stage4 = {path: shape for path, shape in paths.items() if path.startswith("stage4_block2")}
    for stage in (5, 6):
        for block in (1, 2, 3):
            name = f"stage{stage}_block{block}/"
            found = {path: shape for path, shape in paths.items() if path.startswith(name)}
            assert list(found.values()) == list(stage4.values())
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    model = TINY.clone(cascaded_stages=2)
    found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert found["stage6"].shape == found["features"].shape == (1, 3, 3, 64)
    assert found["auxiliary"].shape == found["stage3"].shape


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_a_bottleneck_is_the_sum_of_three_convolutions_and_the_shortcut(stride_in):
    block = ResidualBlock(2, unit=layers.Unit(2, 1, 1), stride_in=stride_in)
    x = np.random.default_rng(0).normal(size=(1, 7, 8, 4)).astype(np.float32)
    variables = random_variables(block, x)

    @jax.jit
    def expected(variables, x):
        def layer(x, name, kernel_size=1, **options):
            part = {key: variables[key][name] for key in variables}
            features = part["params"]["norm"]["scale"].shape[0]
            layer = layers.ConvolutionNorm(features, kernel_size, activation=None, **options)
            return layer.apply(part, x)

        first, second = (2, 1) if stride_in == "1x1" else (1, 2)
        branch = jax.nn.relu(layer(x, "conv1", stride=first))
        branch = jax.nn.relu(layer(branch, "conv2", 3, stride=second))
        return jax.nn.relu(layer(branch, "conv3") + layer(x, "shortcut", stride=2))

    np.testing.assert_allclose(run(block, variables, x), expected(variables, x), atol=1e-5)


def test_resnext_101_has_the_published_number_of_parameters():
    shapes = parameter_paths(resnext101())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 86_742_336
    # The 32 groups have 8 channels each in the first stage, 64 in the last.
    assert shapes["stage1_block1/conv2/convolution/kernel"] == (3, 3, 8, 256)
    assert shapes["stage4_block1/conv2/convolution/kernel"] == (3, 3, 64, 2048)
    assert shapes["stage4_block1/conv3/convolution/kernel"] == (1, 1, 2048, 2048)


def test_groups_of_a_bottleneck_do_not_see_one_another():
    block = ResidualBlock(2, unit=layers.Unit(1, 1, 1), groups=2, group_width=64)
    x = np.random.default_rng(0).normal(size=(1, 5, 5, 8)).astype(np.float32)
    variables = random_variables(block, x)
    params = variables["params"]
    assert params["conv2"]["convolution"]["kernel"].shape == (3, 3, 2, 4)
    # The second group's input reaches only the second half of conv3's input.
    kernel = params["conv3"]["convolution"]["kernel"].at[:, :, 2:].set(0.0)
    params["conv3"]["convolution"]["kernel"] = kernel
    found = run(block, variables, x)
    kernel = params["conv1"]["convolution"]["kernel"]
    params["conv1"]["convolution"]["kernel"] = kernel.at[..., 2:].add(1.0)
    np.testing.assert_array_equal(run(block, variables, x), found)
    params["conv1"]["convolution"]["kernel"] = kernel.at[..., :2].add(1.0)
    assert not np.array_equal(run(block, variables, x), found)


def test_three_stages_are_the_first_three_of_four():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = TINY.clone(num_stages=3)
    whole = {path for path in parameter_paths(TINY) if not path.startswith("stage4")}
    assert set(parameter_paths(model)) == whole
    found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert "stage4" not in found
    assert found["features"].shape == found["stage3"].shape == (1, 4, 4, 32)


@pytest.mark.parametrize("attributes", [{"num_stages": 2}, {"num_stages": 3, "cascaded_stages": 1}])
def test_other_numbers_of_stages_are_refused(attributes):
    with pytest.raises(ValueError, match=r"num_stages is 4, or 3 without cascaded stages; got"):
        TINY.clone(**attributes)


def test_an_unknown_variant_is_refused():
    for name, value in (("block", "preactivated"), ("stride_in", "last"), ("stem", "3x3")):
        with pytest.raises(ValueError, match=rf"{name} is one of \(.*\); got '{value}'"):
            resnet50(**{name: value})
