"""Properties of every backbone of the DeepLab line."""

import functools
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.registry import BACKBONES, BackboneName, make_backbone
from segjax.models.backbones.resnet import ResNet, resnet50, resnet101
from segjax.models.backbones.vgg import VGG16
from segjax.models.backbones.xception import Xception
from segjax.models.normalization import BatchNorm
from tests.variables import random_variables

TINY = {
    "vgg16": VGG16(stage_sizes=(1, 1, 1, 2, 2), width=4),
    "resnet": ResNet(stage_sizes=(1, 1, 2, 2), width=2),
    "resnet basic": ResNet(stage_sizes=(1, 1, 2, 2), width=4, block="basic"),
    "resnet MSRA": ResNet(
        stage_sizes=(1, 1, 2, 2), width=2, stride_in="1x1", stem="3x3x3", cascaded_stages=1
    ),
    "xception": Xception(
        stem_features=(4, 4),
        entry_features=(4, 6, 8),
        middle_blocks=1,
        exit_features=((8, 8, 8), (8, 8, 8)),
    ),
    "mobilenet_v2": MobileNetV2(
        stages=((1, 8, 1, 1), (2, 8, 2, 2), (2, 16, 1, 2), (2, 16, 2, 2), (2, 24, 2, 2))
    ),
}
every_backbone = pytest.mark.parametrize("name", TINY)
SHAPE = (2, 97, 112, 3)  # an odd and an even side


def shapes(backbone, shape=SHAPE, **arguments):
    """Returns the shapes and dtypes of the maps and the variables, without computing them."""
    initialize = functools.partial(backbone.init_with_output, **arguments)
    return jax.eval_shape(initialize, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@functools.cache
def images_and_variables(name):
    images = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return images, random_variables(TINY[name], images)


@functools.cache
def compiled(name, output_stride, multi_grid=None):
    def apply(variables, images):
        return TINY[name].apply(
            variables, images, output_stride=output_stride, multi_grid=multi_grid
        )

    # Compiling these takes a hundred times as long as running them.
    return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def maps(name, output_stride, multi_grid=None):
    images, variables = images_and_variables(name)
    return jax.device_get(compiled(name, output_stride, multi_grid)(variables, images))


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


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_a_multi_grid_trained_at_output_stride_16_is_the_same_function_at_8(name):
    dense, coarse = maps(name, 8, (1, 2)), maps(name, 16, (1, 2))
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
def test_the_maps_of_an_image_do_not_depend_on_the_others_in_its_batch(name):
    images, variables = images_and_variables(name)
    beside_another = compiled(name, 16)(variables, np.stack([images[1], images[0] + 1]))
    for key, expected in maps(name, 16).items():
        np.testing.assert_array_equal(beside_another[key][0], expected[1])
        assert np.any(beside_another[key][1] != expected[0])


@every_backbone
def test_bfloat16_maps_come_from_float32_variables_and_float32_images(name):
    found, variables = shapes(TINY[name].clone(dtype=jnp.bfloat16), output_stride=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", [name for name in TINY if name != "vgg16"])
def test_every_norm_is_the_given_one_and_hears_whether_this_is_training(name):
    heard = []

    class Listening(nn.Module):
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x, train):
            self.param("heard", nn.initializers.zeros, ())
            heard.append((self.dtype, train))
            return x

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
def test_every_name_makes_a_backbone_with_the_given_norm_dtype_and_width(name):
    norm = functools.partial(BatchNorm, epsilon=1e-3)
    backbone = make_backbone(name, norm=norm, dtype=jnp.bfloat16, width_multiplier=0.5)
    assert backbone.dtype == jnp.bfloat16
    assert backbone.norm is norm if name != "vgg16" else not hasattr(backbone, "norm")
    assert getattr(backbone, "width_multiplier", None) == 0.5 or backbone.width == 32


def test_the_registry_has_the_names_of_the_type():
    # Experiments may have registered backbones of their own.
    own = [name for name, make in BACKBONES.items() if make.__module__.startswith("segjax.models.")]
    assert list(get_args(BackboneName)) == own


def test_variants_of_resnet_have_the_names_that_their_weights_are_known_by():
    assert make_backbone("resnet50_msra") == resnet50(stride_in="1x1")
    assert make_backbone("resnet101_msra") == resnet101(stride_in="1x1")
    assert make_backbone("resnet103") == resnet101(stem="3x3x3")
    assert make_backbone("resnet50_v1c") == resnet50(stem="v1c")
    assert make_backbone("resnet101_v1c") == resnet101(stem="v1c")


# torchvision's counts without the classifiers (and, for MobileNetV2, without the 1×1 convolution to
# 1280 channels: 3,504,872 − 1,281,000 − 412,160). For Xception see test_xception.
@pytest.mark.parametrize(
    ("name", "parameters", "features", "low_level", "auxiliary"),
    [
        ("vgg16", 14_714_688, 512, 128, 512),
        ("resnet18", 11_176_512, 512, 64, 256),
        ("resnet34", 21_284_672, 512, 64, 256),
        ("resnet50", 23_508_032, 2048, 256, 1024),
        ("resnet101", 42_500_160, 2048, 256, 1024),
        ("mobilenet_v2", 1_811_712, 320, 144, 96),
        ("mobilenet_v2_1280", 2_223_872, 1280, 24, 96),
        ("mobilenet_v3_large", 2_971_952, 960, 24, 40),
    ],
)
def test_full_sizes_are_the_published_ones(name, parameters, features, low_level, auxiliary):
    found, variables = shapes(make_backbone(name), (1, 33, 33, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    channels = [found[key].shape[-1] for key in ("features", "low_level", "auxiliary")]
    assert channels == [features, low_level, auxiliary]


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"no backbone 'resnet19'; there are vgg16, resnet18, "):
        make_backbone("resnet19")
