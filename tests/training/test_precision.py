"""The precision of products, in the programs that accelerators get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training.precision import with_precision


def product(a, b):
    """A function that traces another one, as networks do."""
    return jax.jit(jnp.matmul)(a, b)


def lowered(function) -> str:
    a = np.ones((2, 2), np.float32)
    return jax.jit(function).trace(a, a).lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_a_function_is_traced_with_its_precision_and_others_are_not(precision):
    words = f"precision = [{precision.upper()}, {precision.upper()}]"
    assert words in lowered(with_precision(product, precision))
    assert words not in lowered(product)


def test_default_leaves_jaxs_own_setting():
    with jax.default_matmul_precision("highest"):
        assert "precision = [HIGHEST, HIGHEST]" in lowered(with_precision(product, "default"))
