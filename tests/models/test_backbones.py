"""What holds for every backbone of the DeepLab line."""

import functools
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones import BackboneName, make_backbone
from segjax.models.mobilenet_v2 import MobileNetV2
from segjax.models.normalization import BatchNorm
from segjax.models.resnet import ResNet
from segjax.models.vgg import VGG16
from segjax.models.xception import Xception
from tests.models.subsampling import random_variables

TINY_XCEPTION = Xception(
    stem_features=(4, 4),
    entry_features=(4, 6, 8),
    middle_blocks=1,
    exit_features=((8, 8, 8), (8, 8, 8)),
)
TINY = {
    "vgg16": VGG16(stage_sizes=(1, 1, 1, 2, 2), width=4),
    "resnet": ResNet(stage_sizes=(1, 1, 2, 3), width=2),
    "resnet basic": ResNet(stage_sizes=(1, 1, 2, 2), width=4, block="basic"),
    "resnet MSRA": ResNet(
        stage_sizes=(1, 1, 2, 2), width=2, stride_in="1x1", stem="3x3x3", cascaded_stages=1
    ),
    "xception": TINY_XCEPTION,
    "xception71": TINY_XCEPTION.clone(
        entry_features=(4, 4, 6, 6, 8), entry_strides=(2, 1, 2, 1, 2)
    ),
    "mobilenet_v2": MobileNetV2(
        stages=((1, 8, 1, 1), (2, 8, 2, 2), (2, 16, 1, 2), (2, 16, 2, 2), (2, 24, 2, 2))
    ),
}
every_backbone = pytest.mark.parametrize("name", TINY)
SHAPE = (2, 97, 112, 3)  # an odd and an even side


def shapes(backbone, shape=SHAPE, **arguments):
    """The shapes and dtypes of the maps and of the variables, without computing them."""
    initialize = functools.partial(backbone.init_with_output, **arguments)
    return jax.eval_shape(initialize, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@functools.cache
def full_size(name):
    """Of the whole backbone: its norm, and as `shapes` at output stride 16."""
    norm = functools.partial(BatchNorm, epsilon=1e-3)
    backbone = make_backbone(name, norm=norm, dtype=jnp.bfloat16)
    assert name == "vgg16" or backbone.norm is norm
    return shapes(backbone, (1, 33, 33, 3), output_stride=16)


@functools.cache
def images_and_variables(name):
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return images, random_variables(TINY[name], images)


@functools.cache
def maps(name, output_stride, multi_grid=None):
    images, variables = images_and_variables(name)

    @jax.jit
    def apply(variables, images):
        return TINY[name].apply(
            variables, images, output_stride=output_stride, multi_grid=multi_grid
        )

    return jax.device_get(apply(variables, images))


@every_backbone
def test_a_dense_map_subsampled_is_that_of_the_larger_output_stride(name):
    dense, middle, coarse = (maps(name, stride) for stride in (8, 16, 32))
    assert coarse["features"].std() > 0.01
    for finer, coarser in ((dense, middle), (middle, coarse)):
        tolerance = 1e-5 * np.abs(coarser["features"]).max()
        np.testing.assert_allclose(
            finer["features"][:, ::2, ::2], coarser["features"], atol=tolerance
        )
        np.testing.assert_allclose(finer["low_level"], coarser["low_level"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "resnet MSRA", "xception", "mobilenet_v2"])
def test_a_multi_grid_trained_at_output_stride_16_is_the_same_function_at_8(name):
    grid = {"resnet": (1, 2, 4), "resnet MSRA": (1, 2), "xception": (1, 2, 1)}.get(name, (2, 1))
    dense, coarse = maps(name, 8, grid), maps(name, 16, grid)
    tolerance = 1e-5 * np.abs(coarse["features"]).max()
    np.testing.assert_allclose(dense["features"][:, ::2, ::2], coarse["features"], atol=tolerance)
    assert np.abs(coarse["features"] - maps(name, 16)["features"]).max() > 100 * tolerance


@every_backbone
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_sides_are_rounded_up_at_every_stride(name, output_stride):
    height, width = 70, 9
    images, variables = images_and_variables(name)
    found = jax.eval_shape(
        functools.partial(TINY[name].apply, output_stride=output_stride),
        variables,
        images[:, :height, :width],
    )
    strides = {"features": output_stride, "auxiliary": min(output_stride, 16), "low_level": 4}
    for key, stride in strides.items():
        assert found[key].shape[1:3] == (-(-height // stride), -(-width // stride))


@every_backbone
def test_batch_of_two_equals_two_batches_of_one(name):
    images, variables = images_and_variables(name)
    apply = jax.jit(functools.partial(TINY[name].apply, output_stride=16))
    for i in range(2):
        single = apply(variables, images[i : i + 1])["features"][0]
        tolerance = 1e-5 * np.abs(single).max()
        np.testing.assert_allclose(maps(name, 16)["features"][i], single, atol=tolerance)


@every_backbone
def test_bfloat16_maps_come_from_float32_variables_and_float32_images(name):
    found, variables = shapes(TINY[name].clone(dtype=jnp.bfloat16), output_stride=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


@every_backbone
def test_every_norm_is_the_given_one_and_hears_whether_this_is_training(name):
    heard = []

    class Listening(nn.Module):
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x, train):
            self.param("heard", nn.initializers.zeros, ())
            heard.append((self.dtype, train))
            return x

    if name == "vgg16":
        pytest.skip("VGG-16 has no norm")
    backbone = TINY[name].clone(norm=Listening, dtype=jnp.bfloat16)
    _, variables = shapes(backbone, train=True)
    assert set(variables) == {"params"}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    kernels = sum(path[-1].key == "kernel" for path in paths)
    assert sum(path[-1].key == "heard" for path in paths) == kernels > 10
    assert heard == [(jnp.bfloat16, True)] * kernels


@every_backbone
@pytest.mark.parametrize("output_stride", [4, 64, 12])
def test_an_output_stride_that_there_is_not_is_refused(name, output_stride):
    with pytest.raises(ValueError, match=f"output_stride is 8, 16 or 32; got {output_stride}"):
        shapes(TINY[name], output_stride=output_stride)


@every_backbone
@pytest.mark.parametrize("multi_grid", [(1,), (1, 2, 4, 8), (0, 0), (1, 2, 0), ()])
def test_a_multi_grid_that_does_not_fit_is_refused(name, multi_grid):
    with pytest.raises(ValueError, match=r"multi_grid has \d rates of at least 1 .* got \("):
        shapes(TINY[name], multi_grid=multi_grid)


@pytest.mark.parametrize("name", get_args(BackboneName))
def test_every_name_makes_a_backbone_with_the_given_norm_and_dtype(name):
    found, variables = full_size(name)
    assert found["features"].shape[:3] == (1, 3, 3)
    assert found["features"].dtype == jnp.bfloat16
    assert ("batch_stats" in variables) == (name != "vgg16")


def test_half_the_width_has_half_the_channels():
    for name in ("vgg16", "resnet34", "xception41", "mobilenet_v2"):
        backbone = make_backbone(name, width_multiplier=0.5)
        found, _ = shapes(backbone, (1, 33, 33, 3))
        whole, _ = full_size(name)
        assert {key: 2 * found[key].shape[-1] for key in found} == {
            key: whole[key].shape[-1] for key in whole
        }


# torchvision's counts without the classifiers (and, for MobileNetV2, without the 1×1 convolution to
# 1280 channels: 3,504,872 − 1,281,000 − 412,160). For Xception see test_xception.
@pytest.mark.parametrize(
    ("name", "parameters", "features", "low_level", "auxiliary"),
    [
        ("vgg16", 14_714_688, 512, 128, 512),
        ("resnet34", 21_284_672, 512, 64, 256),
        ("resnet50", 23_508_032, 2048, 256, 1024),
        ("resnet101", 42_500_160, 2048, 256, 1024),
        ("mobilenet_v2", 1_811_712, 320, 144, 96),
    ],
)
def test_full_sizes_are_the_published_ones(name, parameters, features, low_level, auxiliary):
    found, variables = full_size(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    channels = [found[key].shape[-1] for key in ("features", "low_level", "auxiliary")]
    assert channels == [features, low_level, auxiliary]


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no backbone 'resnet18'; there are vgg16, resnet34, "):
        make_backbone("resnet18")
