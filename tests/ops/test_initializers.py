"""The distributions of weights, drawn by JAX as Flax's initialisers and by NumPy."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from segjax.models.layers import Convolution
from segjax.ops import initializers
from segjax.ops.initializers import drawn_by_numpy

SHAPE = (3, 3, 40, 60)
SCALING = nn.initializers.variance_scaling
FLAX = {
    "he_normal": SCALING(2.0, "fan_out", "normal"),
    "he_normal_fan_in": SCALING(2.0, "fan_in", "normal"),
    "he_normal_up_convolution": SCALING(2.0, "fan_in", "normal", batch_axis=(0, 1)),
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": SCALING(1.0, "fan_in", "uniform"),
}
OURS = {name: getattr(initializers, name) for name in FLAX}
FLAX |= {
    "normal": nn.initializers.normal(0.01),
    "truncated": nn.initializers.truncated_normal(0.09),
}
OURS |= {"normal": initializers.normal(0.01), "truncated": initializers.truncated_normal(0.09)}


@pytest.mark.parametrize("name", FLAX)
def test_jax_draws_what_flaxs_initialiser_draws(name):
    key = jax.random.key(3)
    drawn, expected = OURS[name](key, SHAPE), FLAX[name](key, SHAPE, jnp.float32)
    np.testing.assert_allclose(drawn, expected, rtol=2e-6)


@pytest.mark.parametrize("name", FLAX)
def test_numpy_draws_from_the_same_distribution(name):
    expected = np.sort(np.ravel(FLAX[name](jax.random.key(4), SHAPE, jnp.float32)))
    with drawn_by_numpy(5):
        drawn = OURS[name](None, SHAPE)
    assert (type(drawn), drawn.dtype, drawn.shape) == (np.ndarray, np.float32, SHAPE)
    # Two samples of n values: their distribution functions differ by 1.95 · sqrt(2 / n) at most,
    # with probability 0.999 (Kolmogorov and Smirnov).
    ranks = np.searchsorted(expected, np.sort(drawn, axis=None)) / expected.size
    distance = np.abs(ranks - np.arange(expected.size) / expected.size).max()
    assert distance < 1.95 * math.sqrt(2 / expected.size)
    if name in ("truncated", "lecun_uniform", "lecun_normal"):
        assert np.abs(drawn).max() == pytest.approx(np.abs(expected).max(), rel=1e-2)


def test_numpys_draws_follow_the_seed_and_differ_from_layer_to_layer():
    def draws(seed):
        with drawn_by_numpy(seed):
            return [initializers.he_normal(None, (4, 5)) for _ in range(2)]

    np.testing.assert_array_equal(draws(1), draws(1))
    first, second = draws(1)
    assert (first != second).all()
    assert (first != draws(2)[0]).all()


def test_constants_are_filled_by_jax_and_by_numpy():
    assert isinstance(initializers.ones(None, (2,)), jax.Array)
    with drawn_by_numpy(0):
        np.testing.assert_array_equal(initializers.ones(None, (2,)), np.ones(2, np.float32))
        assert isinstance(initializers.zeros(None, (2,)), np.ndarray)


def test_a_parameter_of_another_shape_is_refused_with_its_layer():
    layer, x = Convolution(4), jnp.zeros((1, 5, 5, 3))
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" .*\(3, 3, 2, 4\).*\(3, 3, 3, 4\)'):
        layer.apply(variables, x[..., :2])
