"""DeepLab v2: its fusions as identities between models, its branches by the paper."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.resnet import ResNet
from segjax.models.backbones.vgg import VGG16
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.ops.resize import resize_bilinear
from tests.models.subsampling import Subsampling, num_parameters, run, run_with_dropout, shapes
from tests.variables import random_variables

TINY = ResNet(stage_sizes=(1, 1, 1, 1), width=2)


def noise(*shape):
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("head_features", [None, 4])
def test_sum_fusion_is_the_sum_of_single_branch_models(head_features):
    rates = (1, 2, 4)
    model = DeepLabV2(3, backbone=Subsampling(), atrous_rates=rates, head_features=head_features)
    images = noise(1, 65, 57, 2)
    variables = random_variables(model, images)
    expected = 0
    for i, rate in enumerate(rates, 1):
        single = {"params": {"branch1": variables["params"][f"branch{i}"]}}
        branch = model.clone(atrous_rates=(rate,))
        expected = expected + run(branch, single, images)["coarse_logits"]
    found = run(model, variables, images)["coarse_logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_each_branch_sees_its_own_rate():
    model = DeepLabV2(1, backbone=Subsampling(), output_stride=1, atrous_rates=(2, 5))
    images = noise(1, 13, 13, 1)
    variables = random_variables(model, images)

    @jax.jit
    @jax.grad
    def center(images):
        return model.apply(variables, images)["coarse_logits"][0, 6, 6, 0]

    rows, columns = np.nonzero(np.asarray(center(images))[0, :, :, 0])
    seen = {(int(row) - 6, int(column) - 6) for row, column in zip(rows, columns, strict=True)}
    assert seen == {(i * r, j * r) for r in (2, 5) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_resnet_branches_are_classifiers_and_vgg_branches_have_fc6_and_fc7():
    resnet, _ = shapes(DeepLabV2(21, backbone=TINY, atrous_rates=(6, 12)))
    assert {name: shape for name, shape in resnet.items() if "branch" in name} == {
        "branch1/logits/kernel": (3, 3, 64, 21),
        "branch1/logits/bias": (21,),
        "branch2/logits/kernel": (3, 3, 64, 21),
        "branch2/logits/bias": (21,),
    }
    vgg, _ = shapes(DeepLabV2(21, backbone="vgg16", atrous_rates=(6,), head_features=1024))
    assert {name: shape for name, shape in vgg.items() if "branch" in name} == {
        "branch1/fc6/kernel": (3, 3, 512, 1024),
        "branch1/fc6/bias": (1024,),
        "branch1/fc7/kernel": (1, 1, 1024, 1024),
        "branch1/fc7/bias": (1024,),
        "branch1/logits/kernel": (1, 1, 1024, 21),
        "branch1/logits/bias": (21,),
    }


def test_rates_and_scales_do_not_change_the_parameters():
    large, _ = shapes(DeepLabV2(21, backbone=TINY))
    small, _ = shapes(DeepLabV2(21, backbone=TINY, atrous_rates=(2, 4, 8, 12)))
    multi_scale, _ = shapes(DeepLabV2(21, backbone=TINY, scales=(0.5, 0.75, 1.0)))
    field_of_view, _ = shapes(DeepLabV2(21, backbone=TINY, atrous_rates=(12,)))
    assert large == small == multi_scale
    assert set(large) - set(field_of_view) == {
        f"branch{i}/logits/{leaf}" for i in (2, 3, 4) for leaf in ("kernel", "bias")
    }


def test_resnet101_has_the_papers_size():
    # ResNet-101 without its classifier, and four 3×3 classifiers of 21 classes.
    assert num_parameters(DeepLabV2(21)) == 42_500_160 + 4 * (9 * 2048 + 1) * 21


@pytest.mark.parametrize("align_corners", [True, False])
def test_scales_are_fused_by_their_maximum_and_each_is_supervised(align_corners):
    model = DeepLabV2(
        3, backbone=Subsampling(), atrous_rates=(1,), scales=(0.5, 1.0), align_corners=align_corners
    )
    images = noise(1, 65, 49, 2)
    variables = random_variables(model, images)
    outputs = run(model, variables, images)
    single = model.clone(scales=(1.0,))
    size = (33, 25) if align_corners else (32, 24)
    half = run(single, variables, resize_bilinear(images, size, align_corners=align_corners))
    whole = run(single, variables, images)
    assert len(outputs["auxiliary_logits"]) == 2
    for found, expected in zip(outputs["auxiliary_logits"], (half, whole), strict=True):
        np.testing.assert_allclose(found, expected["coarse_logits"], rtol=1e-5)
    resized = resize_bilinear(half["coarse_logits"], (9, 7), align_corners=align_corners)
    expected = np.maximum(resized, whole["coarse_logits"])
    np.testing.assert_allclose(outputs["coarse_logits"], expected, rtol=1e-5)
    assert np.any(expected != resized)
    assert np.any(expected != whole["coarse_logits"])
    assert "auxiliary_logits" not in whole


def test_the_released_networks_scales_of_a_321_pixel_crop():
    # Its Interp layers turn 321 into 241 and 161; output stride 8 makes maps of 31, 21 and 41.
    model = DeepLabV2(2, backbone=Subsampling(), scales=(0.75, 0.5, 1.0))
    _, outputs = shapes(model, (321, 321))
    assert [x.shape[1] for x in outputs["auxiliary_logits"]] == [31, 21, 41]
    assert outputs["coarse_logits"].shape == (2, 41, 41, 2)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_logits_have_the_inputs_resolution_at_any_size(output_stride):
    model = DeepLabV2(5, backbone=TINY, output_stride=output_stride, scales=(0.5, 0.75, 1.0))
    for height, width in ((33, 48), (50, 35)):
        outputs = shapes(model, (height, width))[1]
        assert outputs["logits"].shape == (2, height, width, 5)
        coarse = (-(-height // output_stride), -(-width // output_stride))
        assert outputs["coarse_logits"].shape == (2, *coarse, 5)


def test_dense_scores_subsampled_are_those_of_the_larger_output_stride():
    model = DeepLabV2(3, backbone=TINY, kernel_size=1, atrous_rates=(1,))
    images = noise(1, 65, 50, 3)
    variables = random_variables(model, images)
    dense = run(model, variables, images)["coarse_logits"]
    coarse = run(model.clone(output_stride=16), variables, images)["coarse_logits"]
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, rtol=1e-4)
    assert np.std(coarse) > 1e-3 * np.abs(coarse).max()


def test_dropout_acts_in_training_only():
    model = DeepLabV2(
        2, backbone=VGG16(stage_sizes=(1,) * 5, width=2), atrous_rates=(1,), head_features=16
    )
    images = noise(1, 33, 33, 3)
    variables = random_variables(model, images)

    def found(seed, train):
        return run_with_dropout(model, variables, images, seed=seed, train=train)["logits"]

    np.testing.assert_array_equal(found(0, False), found(1, False))
    assert np.any(found(0, True) != found(1, True))


def test_bfloat16_computes_in_bfloat16_with_float32_logits():
    model = DeepLabV2(
        2, backbone=Subsampling(), atrous_rates=(1, 2), head_features=8, dtype=jnp.bfloat16
    )
    images = noise(1, 33, 33, 3)
    variables = random_variables(model, images)
    apply = partial(model.apply, capture_intermediates=True)
    outputs, state = jax.jit(apply)(variables, images)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    assert state["intermediates"]["branch2"]["__call__"][0].dtype == jnp.bfloat16
    exact = run(model.clone(dtype=None), variables, images)["logits"]
    np.testing.assert_allclose(outputs["logits"], exact, atol=0.02 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"atrous_rates": ()}, r"atrous_rates holds .* got \(\)"),
        ({"atrous_rates": (6, 0)}, r"atrous_rates holds .* got \(6, 0\)"),
        ({"scales": (0.5, -1.0)}, r"scales holds .* got \(0.5, -1.0\)"),
    ],
)
def test_bad_rates_and_scales_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepLabV2(2, **arguments)
