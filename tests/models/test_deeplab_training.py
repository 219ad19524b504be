"""Each model of the DeepLab line overfits one small batch, and training moves every parameter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import segjax.models
from segjax.models.backbones.resnet import ResNet
from segjax.models.backbones.vgg import VGG16
from segjax.models.deeplab_v1 import DeepLabV1
from segjax.models.deeplab_v2 import DeepLabV2
from segjax.models.deeplab_v3 import DeepLabV3
from segjax.models.deeplab_v3plus import DeepLabV3Plus
from segjax.models.encoder_unet import EncoderUNet
from tests.variables import random_variables

RESNET = ResNet(stage_sizes=(1, 1, 1, 1), width=8, block="basic")
VGG = VGG16(stage_sizes=(1, 1, 1, 1, 1), width=8)
MODELS = {
    "v1": DeepLabV1(3, backbone=VGG, head_features=32, atrous_rate=2, dropout_rate=0.0),
    "v2": DeepLabV2(3, backbone=VGG, atrous_rates=(1, 2), scales=(0.5, 1.0)),
    "v3": DeepLabV3(
        3,
        backbone=RESNET,
        output_stride=8,
        multi_grid=(2,),
        atrous_rates=(1, 2),
        aspp_features=16,
        dropout_rate=0.0,
        auxiliary_head=True,
    ),
    "v3+": DeepLabV3Plus(
        3,
        backbone=RESNET,
        atrous_rates=(1,),
        aspp_features=16,
        low_level_features=8,
        decoder_features=16,
        dropout_rate=0.0,
    ),
    "encoder U-Net": EncoderUNet(3, backbone=RESNET, decoder_features=(16, 16, 16, 8, 8)),
}
SIDE, STEPS = 33, 150


def squares():
    """Returns two images with a square of each class on a background, on the grid of stride 8."""
    labels = np.zeros((2, SIDE, SIDE), np.int32)
    labels[0, 4:13, 4:21] = 1
    labels[0, 20:29, 12:29] = 2
    labels[1, 12:29, 4:13] = 2
    labels[1, 4:21, 20:29] = 1
    noise = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3))
    return (np.eye(3)[labels] + 0.1 * noise).astype(np.float32), labels


def test_no_architecture_lacks_the_test_that_it_overfits():
    tested = {type(model).__name__ for model in MODELS.values()}
    # U-Net and Mask R-CNN overfit a batch in the tests of their tasks.
    assert tested | {"UNet", "MaskRCNN"} == set(segjax.models.__all__)


# v1 has v2's parts, and v3+ those of v3 but for the auxiliary head, which test_deeplab.py trains.
@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.slow] if x in ("v2", "v3") else []) for x in MODELS],
)
def test_overfits_one_batch(name):
    model = MODELS[name]
    images, labels = squares()
    variables = random_variables(model, images)
    # All parameters in one vector: updates leaf by leaf would compile longer than the model.
    start, as_tree = ravel_pytree(variables["params"])
    optimizer = optax.adam(0.01)

    def loss(params, statistics):
        outputs, updated = model.apply(
            {"params": as_tree(params), "batch_stats": statistics},
            images,
            True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        total = jnp.float32(0)
        # v1 and v2 train on the coarse grid, the others on the image's, as in their papers.
        main = outputs["coarse_logits" if name in ("v1", "v2") else "logits"]
        for logits in (main, *outputs.get("auxiliary_logits", ())):
            stride = -(-SIDE // logits.shape[1])
            targets = labels[:, ::stride, ::stride]
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
            total += losses.mean()
        return total, updated.get("batch_stats", {})

    # This runs long enough to repay the optimisations that conftest.py turns off.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def train(params, statistics):
        def step(state, _):
            params, statistics, moments = state
            gradient = jax.value_and_grad(loss, has_aux=True)
            (value, statistics), gradients = gradient(params, statistics)
            with jax.numpy_dtype_promotion("standard"):  # for Adam's powers of the step
                updates, moments = optimizer.update(gradients, moments)
            return (params + updates, statistics, moments), value

        state = (params, statistics, optimizer.init(params))
        (params, _, _), losses = jax.lax.scan(step, state, length=STEPS)
        return params, losses

    end, losses = train(start, variables.get("batch_stats", {}))
    assert losses[-1] < 0.05 * losses[0], f"{losses[0]} → {losses[-1]}"
    for path, moved in jax.tree_util.tree_leaves_with_path(as_tree(jnp.abs(end - start))):
        assert jnp.any(moved > 0), f"{jax.tree_util.keystr(path)} never moved"
