from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.resnet import ResNet
from segjax.models.normalization import GroupNorm
from segjax.models.roi_heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    MLPMaskHead,
    ResidualHead,
    mask_probabilities,
)
from tests.models.subsampling import run
from tests.models.test_layers import images, slow_convolution
from tests.variables import random_variables


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def shapes_of(module, *shape):
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}


def test_the_box_head_is_convolutions_then_fully_connected_layers():
    x = images(3, 2, 4, 2)
    head = BoxHead(convolutions=1, fully_connected=2, features=3, fc_features=4)
    variables = random_variables(head, x)
    params = jax.device_get(variables["params"])
    assert set(params) == {"convolution1", "fc1", "fc2"}
    found = run(head, variables, x)
    for region in range(3):
        kernel, bias = (params["convolution1"]["convolution"][name] for name in ("kernel", "bias"))
        y = np.maximum(slow_convolution(x[region], kernel) + bias, 0).ravel()
        for name in ("fc1", "fc2"):
            y = np.maximum(dense(y, params[name]), 0)
        np.testing.assert_allclose(found[region], y, atol=1e-4)


def test_the_residual_head_is_the_last_stage_of_the_resnet_on_each_region():
    resnet = ResNet(stage_sizes=(1, 1, 1, 2), width=2, stride_in="1x1")
    photographs = images(2, 64, 64, 3)
    variables = random_variables(resnet, photographs)
    maps = run(resnet, variables, photographs)
    head = ResidualHead(blocks=2, width=2, stride_in="1x1")
    stage = {
        collection: {
            name.removeprefix("stage4_"): value
            for name, value in values.items()
            if name.startswith("stage4_")
        }
        for collection, values in variables.items()
    }
    found = run(head, stage, maps["stage3"])
    assert found.shape == (2, 2, 2, 64)
    assert np.asarray(found).any()
    np.testing.assert_allclose(found, maps["stage4"], rtol=1e-5)


def test_the_predictor_is_two_linear_layers_with_the_background_first():
    x = images(3, 5)
    predictor = BoxPredictor(2)
    variables = random_variables(predictor, x)
    params = jax.device_get(variables["params"])
    logits, deltas = run(predictor, variables, x)
    np.testing.assert_allclose(logits, dense(x, params["class_logits"]), atol=1e-5)
    expected = dense(x, params["deltas"]).reshape(3, 2, 4)
    np.testing.assert_allclose(deltas, expected, atol=1e-5)
    assert logits.shape == (3, 3)
    agnostic = shapes_of(BoxPredictor(2, class_agnostic=True), 3, 5)
    assert agnostic["deltas/kernel"] == (5, 4)
    assert agnostic["class_logits/kernel"] == (5, 3)


def test_the_mask_head_doubles_the_resolution_by_an_up_convolution():
    x = images(2, 3, 3, 2)
    head = MaskHead(3, convolutions=1, features=4)
    variables = random_variables(head, x)
    params = jax.device_get(variables["params"])
    found = run(head, variables, x)
    for region in range(2):
        first, last = (params[name]["convolution"] for name in ("convolution1", "logits"))
        y = np.maximum(slow_convolution(x[region], first["kernel"]) + first["bias"], 0)
        up = params["up_convolution"]
        for i, j in np.ndindex(6, 6):
            tap = y[i // 2, j // 2] @ up["kernel"][i % 2, j % 2] + up["bias"]
            expected = np.maximum(tap, 0) @ last["kernel"][0, 0] + last["bias"]
            np.testing.assert_allclose(found[region, i, j], expected, atol=1e-4)


def test_the_mlp_head_gives_masks_of_its_resolution():
    x = images(2, 3, 3, 2)
    head = MLPMaskHead(2, fc_features=4, resolution=5)
    variables = random_variables(head, x)
    params = jax.device_get(variables["params"])
    y = x.reshape(2, -1)
    for name in ("fc1", "fc2"):
        y = np.maximum(dense(y, params[name]), 0)
    expected = dense(y, params["logits"]).reshape(2, 5, 5, 2)
    np.testing.assert_allclose(run(head, variables, x), expected, atol=1e-4)


@pytest.mark.parametrize("head", [BoxHead(convolutions=2), MaskHead(2, convolutions=2)])
def test_a_norm_stands_behind_each_convolution_and_nowhere_else(head):
    plain = shapes_of(head, 1, 4, 4, 3)
    assert not any("norm" in path for path in plain)
    normalized = shapes_of(head.clone(norm=partial(GroupNorm, num_groups=2)), 1, 4, 4, 3)
    added = set(normalized) - set(plain)
    assert added == {f"convolution{i}/norm/{name}" for i in (1, 2) for name in ("bias", "scale")}
    assert set(plain) - set(normalized) == {f"convolution{i}/convolution/bias" for i in (1, 2)}


@pytest.mark.parametrize(
    "head",
    [
        BoxHead(convolutions=1, fully_connected=1, features=4, fc_features=4),
        MaskHead(2, convolutions=1, features=4),
    ],
)
def test_a_region_knows_nothing_of_the_others_with_group_norm(head):
    head = head.clone(norm=partial(GroupNorm, num_groups=2))
    x = images(3, 4, 4, 2)
    variables = random_variables(head, x)
    apply = jax.jit(partial(head.apply, train=True))
    found = apply(variables, x)
    other = x.copy()
    other[1:] += 1
    np.testing.assert_array_equal(apply(variables, other)[0], found[0])
    assert not np.array_equal(apply(variables, other)[1], found[1])


def test_predictors_begin_with_small_weights():
    for module, name, deviation in (
        (BoxPredictor(20), "class_logits", 0.01),
        (BoxPredictor(20), "deltas", 0.001),
    ):
        params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 50)))["params"]
        np.testing.assert_allclose(float(params[name]["kernel"].std()), deviation, rtol=0.1)
        assert not params[name]["bias"].any()


CLASS_LOGITS = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)


def test_a_regions_mask_is_the_sigmoid_of_its_class():
    classes = np.array([1, 3, 2, 0], np.int32)
    found = mask_probabilities(CLASS_LOGITS, classes)
    for region, channel in enumerate([0, 2, 1, 0]):  # class 0 has the mask of class 1
        expected = 1 / (1 + np.exp(-CLASS_LOGITS[region, ..., channel]))
        np.testing.assert_allclose(found[region], expected, rtol=1e-5)


def test_a_single_output_is_the_mask_of_every_class():
    classes = np.array([1, 3, 2, 0], np.int32)
    found = mask_probabilities(CLASS_LOGITS[..., :1], classes)
    np.testing.assert_allclose(found, nn.sigmoid(CLASS_LOGITS[..., 0]), rtol=1e-5)


def test_with_a_softmax_the_classes_and_the_background_share_each_pixel():
    classes = np.array([1, 2, 1, 2], np.int32)
    found = mask_probabilities(CLASS_LOGITS, classes, loss="softmax")
    exponentials = np.exp(CLASS_LOGITS)
    expected = exponentials / exponentials.sum(-1, keepdims=True)
    for region, label in enumerate(classes):
        np.testing.assert_allclose(found[region], expected[region, ..., label], rtol=1e-5)
