"""DeepLab v1 against the paper's table 2 and hand-written arithmetic."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.resnet import ResNet
from segjax.models.backbones.vgg import VGG16
from segjax.models.deeplab_v1 import DeepLabV1
from tests.models.subsampling import Subsampling, num_parameters, run, run_with_dropout, shapes
from tests.variables import random_variables

TINY = VGG16(stage_sizes=(1, 1, 1, 1, 1), width=4)


def noise(*shape):
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize(
    ("kernel_size", "head_features", "millions"),
    [(7, 4096, 134.3), (4, 4096, 65.1), (3, 1024, 20.5)],
)
def test_variants_have_the_parameters_of_table_2(kernel_size, head_features, millions):
    model = DeepLabV1(21, kernel_size=kernel_size, head_features=head_features)
    assert round(num_parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("kernel_size", "rate", "taps"),
    [
        (3, 12, [-12, 0, 12]),
        (4, 4, [-6, -2, 2, 6]),
        (4, 8, [-12, -4, 4, 12]),
        (7, 4, [-12, -8, -4, 0, 4, 8, 12]),
    ],
)
def test_fc6_sees_exactly_its_atrous_taps(kernel_size, rate, taps):
    model = DeepLabV1(
        2,
        backbone=Subsampling(),
        output_stride=1,
        kernel_size=kernel_size,
        atrous_rate=rate,
        head_features=64,  # so that some are positive
        average_pooling=False,
    )
    images = noise(1, 27, 27, 1)
    variables = random_variables(model, images)

    def center(images):
        return model.apply(variables, images)["coarse_logits"][0, 13, 13, 0]

    rows, columns = np.nonzero(np.asarray(jax.jit(jax.grad(center))(images))[0, :, :, 0])
    assert sorted(set(rows - 13)) == taps
    assert sorted(set(columns - 13)) == taps
    assert len(rows) == len(taps) ** 2


def test_head_agrees_with_numpy():
    model = DeepLabV1(3, backbone=Subsampling(), output_stride=1, kernel_size=1, head_features=4)
    images = np.asarray(noise(1, 5, 6, 2))
    variables = random_variables(model, images)
    params = jax.device_get(variables["params"])
    padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)))
    x = sum(padded[i : i + 5, j : j + 6] for i, j in np.ndindex(3, 3)) / 9
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"][0, 0] + params[name]["bias"], 0)
    expected = x @ params["logits"]["kernel"][0, 0] + params["logits"]["bias"]
    np.testing.assert_allclose(run(model, variables, images)["logits"][0], expected, rtol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("multi_scale_features", [False, True])
def test_logits_have_the_inputs_resolution_at_any_size(output_stride, multi_scale_features):
    model = DeepLabV1(
        5,
        backbone=TINY,
        output_stride=output_stride,
        head_features=4,
        multi_scale_features=multi_scale_features,
    )
    for height, width in ((33, 48), (50, 35)):
        outputs = shapes(model, (height, width))[1]
        assert outputs["logits"].shape == (2, height, width, 5)
        coarse = (-(-height // output_stride), -(-width // output_stride))
        assert outputs["coarse_logits"].shape == (2, *coarse, 5)


def test_dense_scores_subsampled_are_those_of_the_larger_output_stride():
    # Layers that read neighbours on the map are off: their distance changes with the stride.
    model = DeepLabV1(3, backbone=TINY, head_features=8, kernel_size=1, average_pooling=False)
    images = noise(1, 65, 50, 3)
    variables = random_variables(model, images)
    dense = run(model, variables, images)["coarse_logits"]
    coarse = run(model.clone(output_stride=16), variables, images)["coarse_logits"]
    np.testing.assert_allclose(dense[:, ::2, ::2], coarse, rtol=1e-4)
    assert np.std(coarse) > 1e-3 * np.abs(coarse).max()


def test_upsampling_keeps_aligned_corners():
    model = DeepLabV1(2, backbone=TINY, head_features=4)
    images = noise(1, 33, 41, 3)
    outputs = run(model, random_variables(model, images), images)
    np.testing.assert_allclose(outputs["logits"][:, ::8, ::8], outputs["coarse_logits"], rtol=1e-5)
    assert np.std(outputs["coarse_logits"]) > 0


def test_multi_scale_features_add_640_channels_to_the_classifier_and_nothing_else():
    plain, _ = shapes(DeepLabV1(21))
    multi_scale, _ = shapes(DeepLabV1(21, multi_scale_features=True))
    changed = {name for name in plain if plain[name] != multi_scale[name]}
    assert changed == {"logits/kernel"}
    assert multi_scale["logits/kernel"][2] == plain["logits/kernel"][2] + 5 * 128
    added = {name: shape for name, shape in multi_scale.items() if name not in plain}
    sources = {"image": 3, "pool1": 64, "pool2": 128, "pool3": 256, "pool4": 512}
    expected = {}
    for name, channels in sources.items():
        expected |= {f"{name}_conv1/kernel": (3, 3, channels, 128), f"{name}_conv1/bias": (128,)}
        expected |= {f"{name}_conv2/kernel": (1, 1, 128, 128), f"{name}_conv2/bias": (128,)}
    assert added == expected


def test_multi_scale_features_come_from_their_place_in_the_image():
    # Each of the stub's maps is the image at pixels 8·i, where both convolutions are centred.
    model = DeepLabV1(
        2, backbone=Subsampling(), head_features=4, kernel_size=1, multi_scale_features=True
    )
    images = noise(1, 49, 33, 1)
    variables = random_variables(model, images)
    # Kernels have a centre tap alone, equal for all channels; the classifier ignores fc7.
    for level, name in enumerate(("image", "pool1", "pool2", "pool3", "pool4")):
        kernel = jnp.zeros((3, 3, 1, 128)).at[1, 1].set(level + 1)
        variables["params"][f"{name}_conv1"] = {"kernel": kernel, "bias": jnp.zeros(128)}
        variables["params"][f"{name}_conv2"] = {
            "kernel": jnp.eye(128)[None, None],
            "bias": jnp.zeros(128),
        }
    weights = jnp.zeros((1, 1, 644, 2)).at[0, 0, 0:640:128].set(1.0)
    variables["params"]["logits"] = {"kernel": weights, "bias": jnp.zeros(2)}
    outputs = run(model, variables, images)
    expected = np.maximum(images[:, ::8, ::8], 0) * (1 + 2 + 3 + 4 + 5)
    np.testing.assert_allclose(outputs["coarse_logits"], np.repeat(expected, 2, -1), rtol=1e-5)


def test_multi_scale_features_of_a_resnet_are_refused():
    backbone = ResNet(stage_sizes=(1, 1, 1, 1), width=2)
    with pytest.raises(ValueError, match="pool1 … pool4 of a VGG backbone"):
        shapes(DeepLabV1(2, backbone=backbone, multi_scale_features=True))


def test_dropout_acts_in_training_only():
    model = DeepLabV1(2, backbone=TINY, head_features=32)
    images = noise(1, 33, 33, 3)
    variables = random_variables(model, images)

    def found(seed, train):
        return run_with_dropout(model, variables, images, seed=seed, train=train)["logits"]

    np.testing.assert_array_equal(found(0, False), found(1, False))
    assert np.any(found(0, True) != found(1, True))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits():
    model = DeepLabV1(
        2,
        backbone=TINY.clone(dtype=jnp.bfloat16),
        head_features=8,
        multi_scale_features=True,
        dtype=jnp.bfloat16,
    )
    images = noise(1, 33, 33, 3)
    variables = random_variables(model, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    apply = partial(model.apply, capture_intermediates=True)
    outputs, state = jax.jit(apply)(variables, images)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.float32)}
    assert state["intermediates"]["fc7"]["__call__"][0].dtype == jnp.bfloat16
    exact = run(model.clone(backbone=TINY, dtype=None), variables, images)["logits"]
    np.testing.assert_allclose(outputs["logits"], exact, atol=0.03 * float(jnp.abs(exact).max()))
