from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.fpn import FeaturePyramid
from segjax.models.normalization import GroupNorm
from tests.models.subsampling import run
from tests.models.test_layers import slow_convolution
from tests.variables import random_variables

SIZES = ((9, 7), (5, 4), (3, 2), (2, 1))  # halved, rounding up: odd sides everywhere


@pytest.fixture(scope="module")
def pyramid():
    """(variables, stages C2 … C5 of 2 … 5 channels, levels P2 … P6 of 3 features)"""
    rng = np.random.default_rng(0)
    stages = [
        rng.normal(size=(2, *size, channels)).astype(np.float32)
        for channels, size in enumerate(SIZES, 2)
    ]
    module = FeaturePyramid(3)
    variables = random_variables(module, stages)
    return variables, stages, jax.device_get(run(module, variables, stages))


def test_levels_agree_with_numpy_also_where_sides_are_odd(pyramid):
    variables, stages, levels = pyramid
    params = jax.device_get(variables["params"])
    for image in (0, 1):
        above = None
        for number in (5, 4, 3, 2):
            lateral, output = (params[f"{n}{number}"]["convolution"] for n in ("lateral", "output"))
            x = stages[number - 2][image] @ lateral["kernel"][0, 0] + lateral["bias"]
            if above is not None:
                for i, j in np.ndindex(x.shape[:2]):
                    x[i, j] += above[i // 2, j // 2]
            above = x
            expected = slow_convolution(x, output["kernel"]) + output["bias"]
            np.testing.assert_allclose(levels[number - 2][image], expected, atol=1e-4)


def test_p6_is_every_second_position_of_p5(pyramid):
    *_, p5, p6 = pyramid[2]
    assert p6.shape == (2, 1, 1, 3)
    np.testing.assert_array_equal(p6, p5[:, ::2, ::2])


def test_convolutions_have_biases_and_no_activation_unless_there_is_a_norm(pyramid):
    variables, stages, levels = pyramid
    assert all(set(part) == {"convolution"} for part in variables["params"].values())
    assert all((level < 0).any() for level in levels)
    module = FeaturePyramid(4, norm=partial(GroupNorm, num_groups=2))
    params = jax.eval_shape(module.init, jax.random.key(0), stages)["params"]
    for part in params.values():
        assert set(part) == {"convolution", "norm"}
        assert set(part["convolution"]) == {"kernel"}


def test_kernels_begin_uniform_by_fan_in():
    module = FeaturePyramid(64)
    stages = [jnp.zeros((1, 1, 1, 16))]
    params = jax.jit(module.init)(jax.random.key(0), stages)["params"]
    for name, fan_in in (("lateral2", 16), ("output2", 9 * 64)):
        kernel, bound = params[name]["convolution"]["kernel"], np.sqrt(3 / fan_in)
        assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound
        np.testing.assert_allclose(float(kernel.std()), bound / np.sqrt(3), rtol=0.1)
