"""ASPP against a slow NumPy version, and its image-level branch by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.aspp import ASPP, rates_at
from tests.models.subsampling import run, run_with_dropout
from tests.variables import random_variables


def features(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def atrous(x, kernel, rate):
    """Computes a 3×3 or 1×1 convolution of one map [height, width, in], tap by tap."""
    reach = rate * (kernel.shape[0] // 2)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    out = np.zeros((*x.shape[:2], kernel.shape[-1]))
    for i, j in np.ndindex(kernel.shape[:2]):
        window = padded[i * rate : i * rate + x.shape[0], j * rate : j * rate + x.shape[1]]
        out += window @ kernel[i, j]
    return out


def depthwise(x, kernel, rate):
    channels = [atrous(x[..., c : c + 1], kernel[..., c : c + 1], rate) for c in range(x.shape[-1])]
    return np.concatenate(channels, axis=-1)


def normalized(x, params, statistics):
    scale = params["scale"] / np.sqrt(statistics["var"] + 1e-5)
    return np.maximum((x - statistics["mean"]) * scale + params["bias"], 0)


@pytest.mark.parametrize("variant", ["plain", "separable", "separable without norm"])
def test_branches_are_concatenated_in_the_documented_order(variant):
    x = features(1, 7, 6, 3)
    model = ASPP(
        (1, 2),
        features=4,
        separable=variant != "plain",
        normalize_depthwise=variant != "separable without norm",
    )
    variables = random_variables(model, x)
    params, statistics = (jax.device_get(variables[key]) for key in ("params", "batch_stats"))

    def layer(name, x, rate=1):
        def norm(x, *path):
            p, s = params[name], statistics[name]
            for key in path:
                p, s = p[key], s[key]
            return normalized(x, p, s)

        if "depthwise" not in params[name]:
            return norm(atrous(x, params[name]["convolution"]["kernel"], rate), "norm")
        x = depthwise(x, params[name]["depthwise"]["kernel"], rate)
        if "depthwise_norm" in params[name]:
            x = norm(x, "depthwise_norm")
        return norm(
            x @ params[name]["pointwise"]["convolution"]["kernel"][0, 0], "pointwise", "norm"
        )

    means = np.broadcast_to(
        layer("image_pooling", x[0].mean(axis=(0, 1), keepdims=True)), (7, 6, 4)
    )
    branches = [
        layer("pointwise", x[0]),
        layer("atrous1", x[0], 1),
        layer("atrous2", x[0], 2),
        means,
    ]
    expected = layer("projection", np.concatenate(branches, axis=-1))
    assert ("depthwise_norm" in params["atrous1"]) == (variant == "separable")
    np.testing.assert_allclose(run(model, variables, x)[0], expected, rtol=1e-4, atol=1e-4)


def test_rates_double_with_the_resolution():
    assert [rates_at(stride) for stride in (8, 16, 32)] == [(12, 24, 36), (6, 12, 18), (3, 6, 9)]


def test_image_pooling_of_a_single_pixel_is_the_pixel():
    x = features(2, 1, 1, 3)
    model = ASPP((), features=4)
    variables = random_variables(model, x)
    # With equal weights the image-level branch is then the 1×1 branch.
    for collection in variables.values():
        collection["image_pooling"] = collection["pointwise"]
    outputs = run(model, variables, x)
    params = jax.device_get(variables["params"])
    branch = normalized(
        x @ params["pointwise"]["convolution"]["kernel"][0, 0],
        params["pointwise"]["norm"],
        jax.device_get(variables["batch_stats"]["pointwise"]["norm"]),
    )
    kernel = params["projection"]["convolution"]["kernel"][0, 0]
    expected = normalized(
        branch @ (kernel[:4] + kernel[4:]),
        params["projection"]["norm"],
        jax.device_get(variables["batch_stats"]["projection"]["norm"]),
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-4)


def test_a_window_over_the_whole_map_pools_globally_and_larger_ones_are_cut_to_it():
    x = features(2, 5, 4, 3)
    model = ASPP((), features=2, image_pooling=(5, 4))
    variables = random_variables(model, x)
    # The 1×1 branch has zero weights; the pooled one must not depend on a value's place.
    pointwise = variables["params"]["pointwise"]
    variables["params"]["pointwise"] = jax.tree.map(jnp.zeros_like, pointwise)
    whole = run(model, variables, x)
    np.testing.assert_allclose(run(model, variables, x[:, ::-1, ::-1]), whole, rtol=1e-5)
    larger = run(model.clone(image_pooling=(32, 64)), variables, x)
    np.testing.assert_array_equal(larger, whole)
    assert whole.std() > 0


def test_windows_keep_the_means_of_their_place():
    # The map's left and right halves differ, and windows have half its width: each outer window
    # lies in one half, and aligned corners keep their values.
    x = np.ones((1, 2, 6, 1), np.float32)
    x[:, :, 3:] = 5
    model = ASPP((), features=1, image_pooling=(2, 3))
    variables = random_variables(model, x)
    variables["params"]["pointwise"] = jax.tree.map(
        jnp.zeros_like, variables["params"]["pointwise"]
    )
    variables["params"]["projection"]["convolution"]["kernel"] = jnp.ones((1, 1, 2, 1))
    variables["params"]["image_pooling"] = {
        "kernel": jnp.ones((1, 1, 1, 1)),
        "bias": jnp.full(1, 0.5),
    }
    variables["params"]["projection"]["norm"] = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}
    variables["batch_stats"]["projection"]["norm"] = {
        "mean": jnp.zeros(1),
        "var": jnp.full(1, 1 - 1e-5),
    }
    # Means of windows at columns 0 … 3, resized from 4 to 6 columns with the corners in place.
    windows = np.array([3, 3 + 4, 3 + 8, 15]) / 3 + 0.5
    expected = np.interp(np.linspace(0, 3, 6), np.arange(4), windows)
    found = run(model, variables, x)[0, :, :, 0]
    np.testing.assert_allclose(found, np.stack([expected] * 2), rtol=1e-5)


def test_windows_of_image_pooling_have_a_bias_and_no_statistics():
    x = features(1, 4, 4, 3)
    variables = random_variables(ASPP((), features=2, image_pooling=(4, 4)), x)
    assert set(variables["params"]["image_pooling"]) == {"kernel", "bias"}
    assert "image_pooling" not in variables["batch_stats"]
    without = random_variables(ASPP((), features=2, image_pooling=False), x)
    assert set(without["params"]) == {"pointwise", "projection"}


def test_dropout_acts_in_training_only():
    x = features(2, 4, 4, 3)
    model = ASPP((1,), features=8, dropout_rate=0.5)
    variables = random_variables(model, x)

    def found(seed, train):
        return np.asarray(run_with_dropout(model, variables, x, seed=seed, train=train))

    np.testing.assert_array_equal(found(0, False), found(1, False))
    assert np.any(found(0, True) != found(1, True))
    assert np.mean(found(0, True) == 0) > np.mean(found(0, False) == 0) + 0.1
