"""The U-Net with an encoder against segmentation-models-pytorch's sizes and a decoder by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.backbones.resnet import ResNet
from segjax.models.encoder_unet import DecoderBlock, EncoderUNet
from tests.models.subsampling import num_parameters, run, shapes
from tests.variables import random_variables

TINY = ResNet(stage_sizes=(1, 1, 1, 1), width=4, block="basic")


def noise(*shape):
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize(
    ("backbone", "top_features", "expected"),
    [
        ("resnet18", None, 14_328_209),
        ("resnet34", None, 24_436_369),
        ("resnet50", None, 32_521_105),
        ("mobilenet_v2", 1280, 6_628_945),
    ],
)
def test_the_network_has_the_size_of_smp_unet(backbone, top_features, expected):
    model = EncoderUNet(1, backbone=backbone, top_features=top_features)
    assert num_parameters(model) == expected


def test_decoder_block_repeats_pixels_and_puts_the_skip_behind():
    x, skip = noise(1, 2, 3, 2) ** 2, noise(1, 3, 6, 1) ** 2
    block = DecoderBlock(3)
    shape = jax.eval_shape(
        lambda key: block.init(key, x, size=(3, 6), skip=skip), jax.random.key(0)
    )
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shape)
    identity = jnp.zeros((3, 3, 3, 3)).at[1, 1].set(jnp.eye(3))
    for name in ("conv1", "conv2"):
        variables["params"][name]["convolution"]["kernel"] = identity
        variables["params"][name]["norm"]["scale"] = jnp.ones(3)
        variables["batch_stats"][name]["norm"]["var"] = jnp.full(3, 1 - 1e-5)
    found = block.apply(variables, x, size=(3, 6), skip=skip)
    repeated = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)[:, :3]
    np.testing.assert_allclose(found[..., :2], repeated, rtol=1e-5)
    np.testing.assert_allclose(found[..., 2:], skip, rtol=1e-5)


def test_skips_join_from_the_deepest_to_the_stem():
    found, _ = shapes(EncoderUNet(2, backbone=TINY, decoder_features=(16, 8, 6, 5, 3)))
    # Channels of the deeper map and of stage 3, stage 2, stage 1, the stem.
    incoming = [32 + 16, 16 + 8, 8 + 4, 6 + 4, 5]
    for i, (channels, features) in enumerate(zip(incoming, (16, 8, 6, 5, 3), strict=True), 1):
        name = f"decoder_block{i}/conv1/convolution/kernel"
        assert found[name] == (3, 3, channels, features)
    assert found["logits/kernel"] == (3, 3, 3, 2)


@pytest.mark.parametrize(("top_features", "deepest"), [(None, 320), (1280, 1280)])
def test_mobilenet_gives_its_last_map_at_each_stride(top_features, deepest):
    model = EncoderUNet(2, backbone="mobilenet_v2", top_features=top_features)
    found, outputs = shapes(model, (65, 33))
    incoming = [deepest + 96, 256 + 32, 128 + 24, 64 + 16, 32]
    for i, (channels, features) in enumerate(
        zip(incoming, model.decoder_features, strict=True), start=1
    ):
        name = f"decoder_block{i}/conv1/convolution/kernel"
        assert found[name] == (3, 3, channels, features)
    assert ("top/convolution/kernel" in found) == (top_features is not None)
    assert outputs["logits"].shape == (2, 65, 33, 2)


@pytest.mark.parametrize("size", [(64, 96), (65, 33), (50, 47), (1, 5)])
def test_logits_have_the_inputs_resolution_at_any_size(size):
    _, outputs = shapes(EncoderUNet(3, backbone=TINY), size)
    assert outputs["logits"].shape == (2, *size, 3)


def test_output_moves_with_the_input_by_multiples_of_32():
    model = EncoderUNet(2, backbone=TINY, decoder_features=(4, 4, 4, 4, 4))
    images = noise(1, 32, 352, 3)
    variables = random_variables(model, images)
    whole = run(model, variables, images)["logits"]
    part = run(model, variables, images[:, :, 32:])["logits"]
    # Compare away from the cut side: the receptive field is smaller than 150 pixels.
    np.testing.assert_allclose(whole[:, :, 192:], part[:, :, 160:], atol=1e-4)
    assert np.std(whole) > 0.01


def test_bfloat16_computes_in_bfloat16_with_float32_logits():
    model = EncoderUNet(2, backbone=TINY.clone(dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = partial(model.apply, capture_intermediates=True)
    outputs, state = jax.eval_shape(apply, variables, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert outputs["logits"].dtype == jnp.float32
    inner = state["intermediates"]
    assert inner["decoder_block5"]["__call__"][0].dtype == jnp.bfloat16


def test_other_backbones_and_numbers_of_blocks_are_refused():
    with pytest.raises(ValueError, match="no map 'stage3'; expected a ResNet or MobileNetV2"):
        shapes(EncoderUNet(2, backbone="vgg16"))
    with pytest.raises(ValueError, match=r"five entries.* got \(64, 32\)"):
        EncoderUNet(2, decoder_features=(64, 32))
    for options in ({"decoder_features": (8, 8, 8, 8, 0)}, {"top_features": 0}):
        with pytest.raises(ValueError, match=r"at least 1; got \("):
            EncoderUNet(2, **options)
