"""Batch norm against Flax's, which it replaces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.models.normalization import BatchNorm


def problem(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2, 3, (2, 5, 6, 4)), dtype)
    params = {name: jnp.asarray(rng.normal(1, 0.2, 4), jnp.float32) for name in ("scale", "bias")}
    stats = {
        "mean": jnp.asarray(rng.normal(2, 1, 4), jnp.float32),
        "var": jnp.asarray(rng.uniform(4, 9, 4), jnp.float32),
    }
    return x, {"params": params, "batch_stats": stats}


def of_flax(variables, x, *, average: bool, **options):
    norm = nn.BatchNorm(use_running_average=average, momentum=0.7, epsilon=1e-3, **options)
    with jax.numpy_dtype_promotion("standard"):
        return norm.apply(variables, x, mutable=["batch_stats"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("train", "frozen"), [(True, False), (False, False), (True, True)])
def test_outputs_statistics_and_gradients_are_flaxs(dtype, train, frozen):
    x, variables = problem(dtype)
    ours = BatchNorm(momentum=0.7, epsilon=1e-3, frozen=frozen, dtype=dtype)

    def loss(function):
        def run(params, x):
            outputs, updated = function({**variables, "params": params}, x)
            weights = jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape)
            return jnp.sum(outputs.astype(jnp.float32) * weights), (outputs, updated)

        return jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(variables["params"], x)

    found = loss(lambda v, x: ours.apply(v, x, train, mutable=["batch_stats"]))
    expected = loss(lambda v, x: of_flax(v, x, average=frozen or not train, dtype=dtype))
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        )


def test_initial_variables_are_flaxs():
    x, _ = problem()
    ours = BatchNorm().init(jax.random.key(0), x, True)
    theirs = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
