"""DeepLab v3 against torchvision's sizes, the paper's ablations and its own parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.aspp import ASPP
from segjax.models.backbones.mobilenet_v2 import MobileNetV2
from segjax.models.backbones.resnet import ResNet, resnet50
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.heads import AuxiliaryHead
from segjax.models.normalization import BatchNorm
from tests.models.subsampling import Subsampling, num_parameters, run, run_with_dropout, shapes
from tests.variables import random_variables

TINY = ResNet(stage_sizes=(1, 1, 1, 3), width=2)


def noise(*shape):
    return jax.random.normal(jax.random.key(1), shape)


TORCHVISION = {
    "output_stride": 8,
    "multi_grid": None,
    "head_features": 256,
    "auxiliary_head": True,
    "align_corners": False,
}


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # torchvision's weight metadata states these.
        ({"backbone": "resnet50", **TORCHVISION}, 42_004_074),
        ({"backbone": "resnet101", **TORCHVISION}, 60_996_202),
        # Table 7 of the MobileNetV2 paper states this, in millions.
        ({"backbone": "mobilenet_v2", "multi_grid": None}, 4.52),
        ({"backbone": "mobilenet_v2", "multi_grid": None, "atrous_rates": ()}, 2.11),
    ],
)
def test_public_models_have_their_number_of_parameters(arguments, parameters):
    found = num_parameters(DeepLabV3(21, **arguments))
    assert parameters in (found, round(found / 1e6, 2))


EVERYWHERE = {"pointwise", "atrous1", "atrous2", "atrous3", "image_pooling", "projection"}


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ({}, EVERYWHERE),
        ({"multi_grid": (1, 1, 1)}, EVERYWHERE),
        ({"output_stride": 8}, EVERYWHERE),
        ({"image_pooling": False}, EVERYWHERE - {"image_pooling"}),
        (
            {"image_pooling": False, "atrous_rates": (6, 12, 18, 24)},
            EVERYWHERE - {"image_pooling"} | {"atrous4"},
        ),
        ({"atrous_rates": ()}, {"pointwise", "image_pooling", "projection"}),
        ({"aspp": False}, set()),
    ],
)
def test_each_ablation_has_the_parts_it_names(arguments, branches):
    reference, _ = shapes(DeepLabV3(21, backbone=TINY))
    found, _ = shapes(DeepLabV3(21, backbone=TINY, **arguments))
    assert {name.split("/")[1] for name in found if name.startswith("aspp/")} == branches
    resized = {"aspp/projection/convolution/kernel", "logits/kernel"}
    same = {name for name in found if name in reference and found[name] == reference[name]}
    assert set(found) - same <= resized | {name for name in found if "atrous4" in name}
    assert all(name in found for name in reference if name.split("/")[0] != "aspp")


def test_a_backbone_by_name_has_the_variables_and_the_norm_of_the_module_it_stands_for():
    frozen = partial(BatchNorm, frozen=True)
    by_name = DeepLabV3(2, backbone="resnet50", norm=frozen)
    found, _ = shapes(by_name)
    assert found == shapes(by_name.clone(backbone=resnet50()))[0]
    images = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.float32)
    variables = jax.eval_shape(by_name.init, jax.random.key(0), images)
    _, state = jax.eval_shape(
        lambda v, x: by_name.apply(
            v, x, True, rngs={"dropout": jax.random.key(0)}, capture_intermediates=True
        ),
        variables,
        images,
    )
    # Norms that are not frozen would write their statistics, and fail.
    assert "stem" in state["intermediates"]["backbone"]


def test_optional_heads_add_their_own_parameters_only():
    reference, _ = shapes(DeepLabV3(21, backbone=TINY))
    both = DeepLabV3(21, backbone=TINY, head_features=8, auxiliary_head=True)
    found, outputs = shapes(both)
    added = {name: shape for name, shape in found.items() if name not in reference}
    assert added == {
        "head/convolution/kernel": (3, 3, 256, 8),
        "head/norm/scale": (8,),
        "head/norm/bias": (8,),
        "auxiliary_head/head/convolution/kernel": (3, 3, 32, 8),
        "auxiliary_head/head/norm/scale": (8,),
        "auxiliary_head/head/norm/bias": (8,),
        "auxiliary_head/logits/kernel": (1, 1, 8, 21),
        "auxiliary_head/logits/bias": (21,),
    }
    assert {name for name in reference if found[name] != reference[name]} == {"logits/kernel"}
    assert [x.shape for x in outputs["auxiliary_logits"]] == [(2, 3, 3, 21)]


def test_rates_follow_the_output_stride_unless_given():
    images = noise(1, 321, 321, 2)
    model = DeepLabV3(2, backbone=Subsampling(), aspp_features=4, output_stride=8)
    variables = random_variables(model, images)

    def scores(rates):
        return run(model.clone(atrous_rates=rates), variables, images)["coarse_logits"]

    np.testing.assert_array_equal(scores(None), scores((12, 24, 36)))
    assert np.any(scores(None) != scores((6, 12, 18)))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_logits_have_the_inputs_resolution_at_any_size(output_stride, name):
    backbone, multi_grid = TINY, (1, 2, 4)
    if name == "mobilenet_v2":
        backbone, multi_grid = MobileNetV2(width_multiplier=0.1), None
    model = DeepLabV3(
        5,
        backbone=backbone,
        multi_grid=multi_grid,
        output_stride=output_stride,
        auxiliary_head=True,
    )
    for height, width in ((33, 48), (50, 35)):
        outputs = shapes(model, (height, width))[1]
        assert outputs["logits"].shape == (2, height, width, 5)
        coarse = (-(-height // output_stride), -(-width // output_stride))
        assert outputs["coarse_logits"].shape == (2, *coarse, 5)


def test_dense_scores_subsampled_are_those_of_the_larger_output_stride():
    model = DeepLabV3(
        3, backbone=TINY, output_stride=8, multi_grid=None, atrous_rates=(), image_pooling=False
    )
    images = noise(1, 65, 50, 3)
    variables = random_variables(model, images)
    dense = run(model, variables, images)["coarse_logits"]
    coarse = run(model.clone(output_stride=16), variables, images)["coarse_logits"]
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, atol=1e-5 * float(jnp.abs(coarse).max()))
    assert np.std(coarse) > 1e-2 * np.abs(coarse).max()


def test_without_aspp_the_classifier_reads_the_cascades_features():
    cascade = TINY.clone(cascaded_stages=2)
    model = DeepLabV3(3, backbone=cascade, multi_grid=(1, 2, 1), aspp=False)
    images = noise(1, 65, 49, 3)
    variables = random_variables(model, images)
    inner = {name: collection["backbone"] for name, collection in variables.items()}
    backbone = jax.jit(partial(cascade.apply, output_stride=16, multi_grid=(1, 2, 1)))
    features = np.asarray(backbone(inner, images)["stage6"])
    classifier = jax.device_get(variables["params"]["logits"])
    expected = features @ classifier["kernel"][0, 0] + classifier["bias"]
    found = run(model, variables, images)["coarse_logits"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_model_is_its_parts_one_after_the_other():
    model = DeepLabV3(
        3,
        backbone=Subsampling(),
        output_stride=8,
        atrous_rates=(1, 2),
        aspp_features=4,
        auxiliary_head=True,
        image_pooling=(3, 2),
    )
    images = noise(2, 33, 41, 8)
    variables = random_variables(model, images)
    found = run(model, variables, images)
    features = images[:, ::8, ::8]

    def part(module, name, x):
        inner = {key: variables[key][name] for key in variables if name in variables[key]}
        return run(module, inner, x)

    aspp = ASPP((1, 2), features=4, image_pooling=(3, 2))
    classifier = variables["params"]["logits"]
    expected = part(aspp, "aspp", features) @ classifier["kernel"][0, 0] + classifier[
        "bias"
    ].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(found["coarse_logits"], expected, rtol=1e-4, atol=1e-5)
    auxiliary = part(AuxiliaryHead(3), "auxiliary_head", features)
    np.testing.assert_allclose(found["auxiliary_logits"][0], auxiliary, rtol=1e-4, atol=1e-5)
    # With aligned corners, position i of the map is pixel 8·i.
    np.testing.assert_allclose(found["logits"][:, ::8, ::8], found["coarse_logits"], atol=1e-5)


def test_training_updates_every_norm_and_frozen_norms_none():
    images = noise(2, 33, 33, 3)
    model = DeepLabV3(2, backbone=TINY, aspp_features=4, head_features=4, auxiliary_head=True)
    variables = random_variables(model, images)

    def statistics(model):
        @jax.jit
        def apply(variables):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply(variables, images, True, rngs=rngs, mutable=["batch_stats"])[1]

        return jax.tree.leaves(apply(variables)["batch_stats"])

    before = jax.tree.leaves(variables["batch_stats"])
    assert all(np.any(a != b) for a, b in zip(before, statistics(model), strict=True))
    frozen = partial(BatchNorm, frozen=True)
    phase_two = model.clone(backbone=TINY.clone(norm=frozen), norm=frozen, output_stride=8)
    for a, b in zip(before, statistics(phase_two), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_acts_in_training_only():
    model = DeepLabV3(2, backbone=Subsampling(), aspp_features=16, dropout_rate=0.5)
    images = noise(2, 33, 33, 3)
    variables = random_variables(model, images)

    def found(seed, train):
        return run_with_dropout(model, variables, images, seed=seed, train=train)["logits"]

    np.testing.assert_array_equal(found(0, False), found(1, False))
    assert np.any(found(0, True) != found(1, True))


def test_bfloat16_computes_in_bfloat16_with_float32_logits():
    model = DeepLabV3(
        2,
        backbone=Subsampling(),
        aspp_features=8,
        head_features=8,
        auxiliary_head=True,
        image_pooling=(2, 2),
        dtype=jnp.bfloat16,
    )
    images = noise(1, 65, 65, 8)
    variables = random_variables(model, images)
    apply = partial(model.apply, capture_intermediates=True)
    outputs, state = jax.jit(apply)(variables, images)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    for name in ("aspp", "head"):
        assert state["intermediates"][name]["__call__"][0].dtype == jnp.bfloat16
    exact = run(model.clone(dtype=None), variables, images)["logits"]
    np.testing.assert_allclose(outputs["logits"], exact, atol=0.03 * float(jnp.abs(exact).max()))


def test_a_multi_grid_that_does_not_fit_the_backbone_is_refused():
    with pytest.raises(ValueError, match="multi_grid has 4 rates"):
        shapes(DeepLabV3(2, backbone=MobileNetV2()))
