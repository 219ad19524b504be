import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import layers
from segjax.models.backbones.vgg import VGG16
from segjax.ops.convolution import convolution
from tests.variables import random_variables

TINY = VGG16(stage_sizes=(1, 1, 1, 1, 3), width=2)


def drawn(model, shape):
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return images, random_variables(model, images)


def run(model, variables, images, **arguments):
    return jax.jit(lambda v, x: model.apply(v, x, **arguments))(variables, images)


def test_the_thirteen_convolutions_of_configuration_d():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(VGG16().init, jax.random.key(0), images)["params"]
    found = {name: leaves["kernel"].shape for name, leaves in params.items()}
    assert found == {
        "block1_conv1": (3, 3, 3, 64),
        "block1_conv2": (3, 3, 64, 64),
        "block2_conv1": (3, 3, 64, 128),
        "block2_conv2": (3, 3, 128, 128),
        "block3_conv1": (3, 3, 128, 256),
        "block3_conv2": (3, 3, 256, 256),
        "block3_conv3": (3, 3, 256, 256),
        "block4_conv1": (3, 3, 256, 512),
        "block4_conv2": (3, 3, 512, 512),
        "block4_conv3": (3, 3, 512, 512),
        "block5_conv1": (3, 3, 512, 512),
        "block5_conv2": (3, 3, 512, 512),
        "block5_conv3": (3, 3, 512, 512),
    }
    assert all(leaves["bias"].shape == leaves["kernel"].shape[-1:] for leaves in params.values())


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "block5"),
    [(32, None, [1, 1, 1]), (16, None, [1, 1, 1]), (8, None, [2, 2, 2]), (8, (1, 2, 4), [2, 4, 8])],
)
def test_block_5_runs_at_rate_2_behind_a_pool4_without_stride(
    monkeypatch, output_stride, multi_grid, block5
):
    rates = []

    def spy(inputs, kernel, *, stride, rate, **options):
        rates.append(rate)
        return convolution(inputs, kernel, stride=stride, rate=rate, **options)

    monkeypatch.setattr(layers, "convolution", spy)
    images = jnp.zeros((1, 40, 40, 3))
    jax.eval_shape(
        lambda: TINY.init(
            jax.random.key(0), images, output_stride=output_stride, multi_grid=multi_grid
        )
    )
    assert rates == [1, 1, 1, 1, *block5]


def test_the_maps_are_those_after_each_pooling():
    images, variables = drawn(TINY, (1, 40, 48, 3))
    found = run(TINY, variables, images, output_stride=8)
    shapes = {key: value.shape[1:] for key, value in found.items()}
    assert shapes == {
        "pool1": (20, 24, 2),
        "pool2": (10, 12, 4),
        "pool3": (5, 6, 8),
        "pool4": (5, 6, 16),
        "features": (5, 6, 16),
        "low_level": (10, 12, 4),
        "auxiliary": (5, 6, 16),
    }
    layer = variables["params"]["block1_conv1"]
    first = jax.jit(convolution)(images, layer["kernel"]) + layer["bias"].reshape(1, 1, 1, -1)
    expected = nn.max_pool(nn.relu(first), (2, 2), (2, 2))
    np.testing.assert_allclose(found["pool1"], expected, atol=1e-6)


@pytest.mark.parametrize(("pool_size", "rate"), [(2, 2), (3, 1)])
def test_only_the_papers_pool5_is_widened_at_output_stride_8(pool_size, rate):
    model = TINY.clone(pool_size=pool_size)
    images, variables = drawn(model, (1, 49, 56, 3))
    found, state = run(model, variables, images, output_stride=8, capture_intermediates=True)
    last = nn.relu(state["intermediates"]["block5_conv3"]["__call__"][0])
    expected = layers.max_pool(last, size=pool_size, stride=1, rate=rate)
    np.testing.assert_array_equal(found["features"], expected)
    assert np.any(
        found["features"] != layers.max_pool(last, size=pool_size, stride=1, rate=3 - rate)
    )


def test_released_pooling_is_dense_in_every_map_but_the_last():
    model = TINY.clone(pool_size=3)
    images, variables = drawn(model, (1, 65, 80, 3))
    dense, coarse = (run(model, variables, images, output_stride=stride) for stride in (8, 16))
    np.testing.assert_allclose(dense["pool4"][:, ::2, ::2], coarse["pool4"], atol=1e-5)
    assert np.abs(dense["features"][:, ::2, ::2] - coarse["features"]).max() > 0.1


def test_pooling_of_size_3_keeps_positions_centred_on_their_pixels():
    # For sides of 32k + 1, mirrored images give mirrored maps; windows of 2 would not.
    model = TINY.clone(pool_size=3)
    images, variables = drawn(model, (1, 33, 33, 3))
    mirrored = jax.tree.map(
        lambda x: x[:, ::-1] if x.ndim == 4 else x, variables
    )  # kernels [3, 3, in, out]
    found = run(model, variables, images)["pool4"]
    again = run(model, mirrored, images[:, :, ::-1])["pool4"]
    np.testing.assert_allclose(again[:, :, ::-1], found, atol=1e-5)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pool_size is 2 or 3; got 4"):
        drawn(TINY.clone(pool_size=4), (1, 32, 32, 3))
