"""Derivatives of whole networks in both modes, on CPU and lowered for a GPU."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import DeepLabV3, DeepLabV3Plus, UNet
from segjax.models.backbones.resnet import ResNet
from segjax.ops.platforms import for_every_platform
from tests.models.mask_rcnn_tiny import packed_example, stack, tiny_model, tiny_task, variables_of

NETWORKS = {
    "U-Net": (UNet(num_classes=2, features=16, depth=2), (1, 44, 44, 1)),
    "DeepLab v3": (
        DeepLabV3(
            num_classes=3,
            backbone=ResNet(stage_sizes=(1, 1, 1, 1), width=16, block="basic"),
            output_stride=16,
            multi_grid=(2,),
            aspp_features=16,
        ),
        (1, 65, 65, 3),
    ),
    "DeepLab v3+": (
        # Depthwise convolutions, in a network that compiles in seconds.
        DeepLabV3Plus(
            num_classes=3,
            backbone=ResNet(stage_sizes=(1, 1, 1, 1), width=16, block="basic"),
            output_stride=16,
            multi_grid=(2,),
            separable=True,
            aspp_features=16,
            decoder_features=16,
        ),
        (1, 33, 33, 3),
    ),
}


def network(name):
    """A network as a function of its parameters, and two sets of these in float32."""
    model, shape = NETWORKS[name]
    images = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(model.init)(jax.random.key(1), images)
    params = variables["params"]

    def logits(params):
        return model.apply({**variables, "params": params}, images)["logits"]

    keys = jax.random.split(jax.random.key(2), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), keys)
    direction = jax.tree.map(lambda x, key: 0.1 * jax.random.normal(key, x.shape), params, keys)
    return logits, params, direction


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# XLA's own convolutions need no more than one witness.
FIRST_DERIVATIVES = [*((name, "") for name in NETWORKS), ("U-Net", "plain")]


@pytest.mark.parametrize(("name", "setting"), FIRST_DERIVATIVES)
def test_forward_and_reverse_mode_agree(name, setting, monkeypatch):
    monkeypatch.setenv("SEGJAX_CONVOLUTION", setting)
    logits, params, direction = network(name)
    outputs, tangent = jax.jit(partial(jax.jvp, logits))((params,), (direction,))
    weights = jax.random.normal(jax.random.key(3), outputs.shape)
    (gradient,) = jax.jit(lambda p: jax.vjp(logits, p)[1](weights))(params)
    np.testing.assert_allclose(jnp.vdot(tangent, weights), dot(gradient, direction), rtol=1e-3)
    linear = jax.jit(lambda p, d: jax.linearize(logits, p)[1](d))(params, direction)
    np.testing.assert_allclose(linear, tangent, atol=1e-4 * np.abs(tangent).max())


# v3+ takes a minute, and has v3's operators but for the decoder's, which U-Net's are like.
SECOND_DERIVATIVES = [
    *((name, "") for name in NETWORKS if name != "DeepLab v3+"),
    pytest.param("DeepLab v3+", "", marks=pytest.mark.slow),
    ("U-Net", "plain"),
]


@pytest.mark.parametrize(("name", "setting"), SECOND_DERIVATIVES)
def test_hessian_vector_products_agree_in_all_orders_of_the_modes(name, setting, monkeypatch):
    monkeypatch.setenv("SEGJAX_CONVOLUTION", setting)
    logits, params, direction = network(name)

    def loss(params):
        return jnp.mean(jax.nn.softplus(logits(params)))

    def along(params):
        return jax.jvp(loss, (params,), (direction,))[1]

    orders = (
        lambda p: jax.jvp(jax.grad(loss), (p,), (direction,))[1],
        lambda p: jax.grad(along)(p),
        lambda p: jax.grad(lambda q: dot(jax.grad(loss)(q), direction))(p),
    )
    first, *others = (jax.jit(order)(params) for order in orders)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(first))
    for other in others:
        chex.assert_trees_all_close(other, first, rtol=0, atol=1e-3 * scale)


@pytest.mark.parametrize("name", ["U-Net", "DeepLab v3"])
def test_columns_of_the_jacobian_are_derivatives_along_each_input(name):
    logits, params, direction = network(name)

    def along(steps):
        moved = jax.tree.map(lambda x, d: x + steps[0] * d + steps[1] * x, params, direction)
        return jnp.mean(logits(moved), axis=(0, 1, 2))

    zero = jnp.zeros(2)
    forward, reverse = (jax.jit(jacobian(along))(zero) for jacobian in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=0, atol=1e-4 * np.abs(reverse).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_lowered_for_a_gpu_both_modes_have_xlas_convolutions_alone(name):
    logits, params, direction = network(name)

    def loss(params):
        return jnp.mean(jax.nn.softplus(logits(params)))

    functions = (
        lambda p: jax.jvp(logits, (p,), (direction,)),
        jax.jacfwd(lambda step: loss(jax.tree.map(lambda x: x * step, params))),
        lambda p: jax.jvp(jax.grad(loss), (p,), (direction,))[1],
        lambda p: jax.grad(lambda q: jax.jvp(loss, (q,), (direction,))[1])(p),
    )
    arguments = (params, jnp.ones(()), params, params)
    for function, argument in zip(functions, arguments, strict=True):
        lowered = jax.jit(function).trace(argument).lower(lowering_platforms=("cuda",))
        program = lowered.as_text()
        assert "stablehlo.convolution" in program
        # The CPU's forms of the kernel gradient loop over blocks of rows.
        assert "stablehlo.while" not in program


def test_mask_rcnn_lowers_for_a_gpu_with_derivatives_of_predictions_and_of_the_losss_gradient():
    model = tiny_model()
    task, batch, variables = tiny_task(model), stack(packed_example(0)), variables_of(model)
    params = variables["params"]

    def predict(params):
        outputs = model.apply({**variables, "params": params}, batch["image"], batch["size"])
        return {name: x for name, x in outputs.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def loss(params):
        return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)[0]

    for function in (predict, jax.grad(loss)):
        with for_every_platform():
            derivative = jax.jit(partial(jax.jvp, function)).trace((params,), (params,))
        assert "stablehlo.convolution" in derivative.lower(lowering_platforms=("cuda",)).as_text()
