"""The U-Net against the paper's figures and against hand-written arithmetic."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models import UNet
from segjax.models.unet import input_size_for, nearest_valid_sizes, output_size


def shapes(model, size, channels=1):
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, jax.eval_shape(model.apply, variables, images)


def test_the_default_is_the_network_of_figure_1():
    variables, outputs = shapes(UNet(num_classes=2), 572)
    assert sum(x.size for x in jax.tree.leaves(variables)) == 31_030_658
    assert outputs["logits"].shape == (1, 388, 388, 2)
    kernels = [x for x in jax.tree.leaves(variables["params"]) if len(x.shape) == 4]
    assert len(kernels) == 23
    assert max(k.shape[-1] for k in kernels) == 1024


@pytest.mark.parametrize(
    ("input_side", "output_side", "depth"),
    [(572, 388, 4), (188, 4, 4), (140, 100, 2), (700, 516, 4), (5, 1, 0)],
)
def test_shape_law_of_valid_convolutions(input_side, output_side, depth):
    assert output_size(input_side, depth=depth) == output_side
    assert input_size_for(output_side, depth=depth) == input_side


def test_shape_law_agrees_with_the_network():
    for size in range(44, 70):
        model = UNet(num_classes=2, features=2, depth=2)
        try:
            expected = output_size(size, depth=2)
        except ValueError:
            with pytest.raises(ValueError, match="nearest valid size"):
                shapes(model, size)
        else:
            assert shapes(model, size)[1]["logits"].shape[1] == expected


def test_the_error_names_the_nearest_valid_sizes():
    assert nearest_valid_sizes(573) == (572, 588)
    with pytest.raises(ValueError, match="572 or 588"):
        output_size(573)
    with pytest.raises(ValueError, match=r"valid size is 188"):
        output_size(100)
    with pytest.raises(ValueError, match="64 or 80"):
        output_size(65, padding="SAME")


def test_input_size_for_any_output_covers_it():
    for output in (1, 5, 100, 388, 389):
        size = input_size_for(output)
        below, _ = nearest_valid_sizes(size - 1)
        assert output_size(size) >= output
        assert below is None or output_size(below) < output


@pytest.mark.parametrize("norm", [None, "batch", "group"])
@pytest.mark.parametrize("padding", ["VALID", "SAME"])
def test_options_train_and_give_finite_gradients(norm, padding):
    model = UNet(num_classes=3, features=4, depth=1, padding=padding, norm=norm)
    images = jax.random.normal(jax.random.key(1), (2, 20, 24, 2))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    @jax.jit
    def gradients(variables):
        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            outputs, _ = model.apply(
                {**variables, "params": params}, images, True, rngs=rngs, mutable=["batch_stats"]
            )
            return jnp.sum(outputs["logits"] ** 2)

        return jax.grad(loss)(variables["params"])

    found = gradients(variables)
    chex.assert_tree_all_finite(found)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(found))


def test_first_block_and_crop_agree_with_numpy():
    model = UNet(num_classes=2, features=2, depth=0)
    images = np.random.default_rng(0).normal(size=(1, 7, 6, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), images)
    params = jax.device_get(variables["params"])

    def valid_convolution(x, layer):
        kernel, bias = layer["kernel"], layer["bias"]
        rows, columns = kernel.shape[:2]
        out = np.zeros((x.shape[0] - rows + 1, x.shape[1] - columns + 1, kernel.shape[3]))
        for i in range(out.shape[0]):
            for j in range(out.shape[1]):
                window = x[i : i + rows, j : j + columns]
                out[i, j] = np.einsum("abc,abco->o", window, kernel) + bias
        return out

    x = images[0]
    for name in ("Conv_0", "Conv_1"):
        x = np.maximum(valid_convolution(x, params[name]), 0)
    expected = valid_convolution(x, params["logits"])
    np.testing.assert_allclose(model.apply(variables, images)["logits"][0], expected, atol=1e-5)


def test_output_moves_with_the_input_by_multiples_of_the_pooling():
    model = UNet(num_classes=1, features=2, depth=2)
    side = 60
    images = jax.random.normal(jax.random.key(1), (1, side + 4, side + 4, 1))
    apply = jax.jit(lambda x: model.apply(variables, x)["logits"])
    variables = model.init(jax.random.key(0), images[:, :side, :side])
    whole, part = apply(images), apply(images[:, 4:, 4:])
    np.testing.assert_allclose(whole[:, 4:, 4:], part, atol=1e-5)


def test_batch_of_two_equals_two_batches_of_one():
    model = UNet(num_classes=2, features=2, depth=1, padding="SAME", norm="group")
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables = model.init(jax.random.key(0), images)
    both = model.apply(variables, images)["logits"]
    single = [model.apply(variables, image[None])["logits"][0] for image in images]
    np.testing.assert_allclose(both, np.stack(single), atol=1e-5)


def test_dropout_acts_in_training_only_and_after_the_last_two_levels():
    model = UNet(num_classes=2, features=2, depth=2, dropout_rate=0.5)
    images = jnp.ones((1, 44, 44, 1))
    variables = model.init(jax.random.key(0), images)

    def apply(train, seed):
        return model.apply(variables, images, train, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(apply(False, 0)["logits"], apply(False, 1)["logits"])
    assert np.any(apply(True, 0)["logits"] != apply(True, 1)["logits"])
    _, state = model.apply(
        variables,
        images,
        True,
        rngs={"dropout": jax.random.key(0)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    )
    dropped = state["intermediates"]["Dropout_0"]["__call__"]
    assert [x.shape[-1] for x in dropped] == [4, 8]


def test_initialisation_has_the_papers_standard_deviation():
    variables, _ = shapes(UNet(num_classes=2), 188)
    model = UNet(num_classes=2, features=16, depth=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 44, 44, 16)))["params"]
    assert set(params) < set(variables["params"])
    for name, incoming in (("Conv_0", 9 * 16), ("Conv_4", 9 * 32), ("UpConvolution_0", 64)):
        kernel = np.asarray(params[name]["kernel"])
        assert abs(kernel.std() / np.sqrt(2 / incoming) - 1) < 0.05
        assert np.all(np.asarray(params[name]["bias"]) == 0)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters_and_logits():
    model = UNet(num_classes=2, features=4, depth=1, padding="SAME", dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(1), (1, 16, 16, 1))
    variables = model.init(jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    outputs, state = model.apply(variables, images, capture_intermediates=True)
    assert outputs["logits"].dtype == jnp.float32
    assert state["intermediates"]["Conv_1"]["__call__"][0].dtype == jnp.bfloat16
    exact = model.clone(dtype=None).apply(variables, images)["logits"]
    np.testing.assert_allclose(outputs["logits"], exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm='instance'"):
        UNet(num_classes=2, depth=0, norm="instance").init(
            jax.random.key(0), jnp.zeros((1, 9, 9, 1))
        )
