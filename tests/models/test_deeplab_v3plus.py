"""DeepLab v3+: its parts beyond v3, by the paper's ablations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.resnet import ResNet
from segjax.models.backbones.xception import Xception
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import Decoder, DeepLabV3Plus
from segjax.models.layers import ConvolutionNorm
from tests.models.subsampling import Subsampling, run, run_with_dropout, shapes
from tests.variables import random_variables

RESNET = ResNet(stage_sizes=(1, 1, 1, 3), width=2)
XCEPTION = Xception(
    stem_features=(4, 4),
    entry_features=(4, 6, 8),
    middle_blocks=1,
    exit_features=((8, 8, 8), (8, 8, 8)),
)


def noise(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def test_without_the_decoder_and_separable_convolutions_it_is_deeplab_v3():
    v3 = DeepLabV3(3, backbone=Subsampling(), aspp_features=4, head_features=4)
    plus = DeepLabV3Plus(
        3,
        backbone=Subsampling(),
        aspp_features=4,
        head_features=4,
        low_level_features=None,
        separable=False,
    )
    images = noise(2, 65, 49, 3)
    variables = random_variables(v3, images)
    expected, found = run(v3, variables, images), run(plus, variables, images)
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def added_and_removed(arguments):
    reference, _ = shapes(DeepLabV3Plus(21, backbone=RESNET))
    found, _ = shapes(DeepLabV3Plus(21, backbone=RESNET, **arguments))
    added = {name for name in found if found[name] != reference.get(name)}
    removed = {name for name in reference if reference[name] != found.get(name)}
    return added, removed


def prefixes(names, depth):
    return {"/".join(name.split("/")[:depth]) for name in names}


@pytest.mark.parametrize(
    ("arguments", "added", "removed"),
    [
        ({"multi_grid": (1, 2, 4), "output_stride": 8}, set(), set()),
        (
            {"low_level_features": None},
            set(),
            {"decoder/low_level", "decoder/conv1", "decoder/conv2"},
        ),
        (
            {"low_level_features": 8},
            {"decoder/low_level", "decoder/conv1"},
            {"decoder/low_level", "decoder/conv1"},
        ),
        ({"decoder_convolutions": 1}, set(), {"decoder/conv2"}),
        ({"decoder_convolutions": 3}, {"decoder/conv3"}, set()),
        (
            {"image_pooling": False},
            {"aspp/projection"},
            {"aspp/projection", "aspp/image_pooling"},
        ),
        (
            {"head_features": 256},
            {"head/depthwise", "head/depthwise_norm", "head/pointwise"},
            set(),
        ),
        ({"auxiliary_head": True}, {"auxiliary_head/head", "auxiliary_head/logits"}, set()),
    ],
)
def test_each_ablation_changes_exactly_its_part(arguments, added, removed):
    found_added, found_removed = added_and_removed(arguments)
    assert prefixes(found_added, 2) == added
    assert prefixes(found_removed, 2) == removed


def test_separable_convolutions_are_in_aspp_and_decoder_alone():
    added, removed = added_and_removed({"separable": False})
    changed = {f"aspp/atrous{i}" for i in (1, 2, 3)} | {"decoder/conv1", "decoder/conv2"}
    assert prefixes(added, 2) == prefixes(removed, 2) == changed
    assert {name.split("/")[2] for name in removed} == {"depthwise", "depthwise_norm", "pointwise"}
    assert {name.split("/")[2] for name in added} == {"convolution", "norm"}


def test_the_segmentation_models_variant_has_no_norm_inside_separable_convolutions():
    arguments = {"normalize_depthwise": False, "head_features": 256, "decoder_convolutions": 1}
    found, _ = shapes(DeepLabV3Plus(3, backbone="resnet34", **arguments))
    assert not [name for name in found if "depthwise_norm" in name]
    depthwise = {name for name in found if "depthwise" in name}
    assert depthwise == {
        f"{part}/depthwise/kernel"
        for part in ("aspp/atrous1", "aspp/atrous2", "aspp/atrous3", "head", "decoder/conv1")
    }


def test_decoder_joins_upsampled_features_and_projected_low_level_features():
    layer = partial(ConvolutionNorm, kernel_size=1)
    decoder = Decoder(2, features=4, convolutions=0, convolution=layer)
    x, low_level = noise(1, 2, 3, 3), noise(1, 5, 7, 6) ** 2
    images = (x, low_level)
    shape = jax.eval_shape(decoder.init, jax.random.key(0), *images)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shape)
    found = np.asarray(decoder.apply(variables, *images))
    assert found.shape == (1, 5, 7, 5)
    # Corners stay in place, and the middle of four positions is their mean.
    np.testing.assert_allclose(found[:, ::4, ::3, :3], x, rtol=1e-5)
    np.testing.assert_allclose(found[0, 2, 3, :3], np.mean(x[0, :, 1], axis=0), rtol=1e-5)
    total = np.sum(low_level, axis=-1, keepdims=True)
    # The norm's mean, variance, scale and bias are one.
    expected = np.maximum((total - 1) / np.sqrt(1 + 1e-5) + 1, 0)
    np.testing.assert_allclose(found[..., 3:], np.repeat(expected, 2, axis=-1), rtol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("backbone", [RESNET, XCEPTION])
def test_logits_have_the_inputs_resolution_and_coarse_ones_stride_4(output_stride, backbone):
    model = DeepLabV3Plus(5, backbone=backbone, output_stride=output_stride)
    for height, width in ((33, 48), (50, 35)):
        outputs = shapes(model, (height, width))[1]
        assert outputs["logits"].shape == (2, height, width, 5)
        assert outputs["coarse_logits"].shape == (2, -(-height // 4), -(-width // 4), 5)
        encoder_only = shapes(model.clone(low_level_features=None), (height, width))[1]
        coarse = (-(-height // output_stride), -(-width // output_stride))
        assert encoder_only["coarse_logits"].shape == (2, *coarse, 5)


def test_the_encoders_dense_scores_subsampled_are_those_of_the_larger_output_stride():
    # There are no rates, which follow the output stride, and no mean over other positions.
    model = DeepLabV3Plus(
        3,
        backbone=XCEPTION,
        output_stride=8,
        atrous_rates=(),
        image_pooling=False,
        aspp_features=4,
        low_level_features=None,
    )
    images = noise(1, 65, 50, 3)
    variables = random_variables(model, images)
    dense = run(model, variables, images)["coarse_logits"]
    coarse = run(model.clone(output_stride=16), variables, images)["coarse_logits"]
    tolerance = 1e-5 * float(jnp.abs(coarse).max())
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, atol=tolerance)
    assert np.std(coarse) > 1e-2 * np.abs(coarse).max()


def test_dropout_acts_in_training_only():
    model = DeepLabV3Plus(2, backbone=Subsampling(), aspp_features=16, decoder_features=4)
    images = noise(2, 33, 33, 3)
    variables = random_variables(model, images)

    def found(seed, train):
        return run_with_dropout(model, variables, images, seed=seed, train=train)["logits"]

    np.testing.assert_array_equal(found(0, False), found(1, False))
    assert np.any(found(0, True) != found(1, True))


def test_bfloat16_computes_in_bfloat16_with_float32_logits():
    model = DeepLabV3Plus(
        2,
        backbone=Subsampling(),
        aspp_features=8,
        decoder_features=8,
        auxiliary_head=True,
        dtype=jnp.bfloat16,
    )
    images = noise(1, 65, 65, 8)
    variables = random_variables(model, images)
    apply = partial(model.apply, capture_intermediates=True)
    outputs, state = jax.jit(apply)(variables, images)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    for name in ("aspp", "decoder"):
        assert state["intermediates"][name]["__call__"][0].dtype == jnp.bfloat16
    exact = run(model.clone(dtype=None), variables, images)["logits"]
    np.testing.assert_allclose(outputs["logits"], exact, atol=0.03 * float(jnp.abs(exact).max()))
