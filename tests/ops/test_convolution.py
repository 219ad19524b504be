"""The fast forms against XLA's own convolutions, values and gradients."""

import jax
import numpy as np
import pytest
from jax import lax

from segjax.ops import pointwise_convolution, up_convolution

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def assert_same_values_and_gradients(ours, theirs, *arguments):
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), atol=1e-5)
    both = [
        jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), argnums=(0, 1))(*arguments)
        for f in (ours, theirs)
    ]
    for mine, reference in zip(*both, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-4)


def test_pointwise_convolution_equals_xla():
    inputs = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (1, 1, 4, 6))
    assert_same_values_and_gradients(
        lambda x, k: pointwise_convolution(x, k, (1, 1), "SAME"),
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=DIMENSIONS),
        inputs,
        kernel,
    )


def test_pointwise_convolution_refuses_other_kernels_and_strides():
    inputs, kernel = np.zeros((1, 4, 4, 2), np.float32), np.zeros((3, 3, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"kernel \(3, 3\)"):
        pointwise_convolution(inputs, kernel, (1, 1), "SAME")
    with pytest.raises(ValueError, match=r"stride \(2, 2\)"):
        pointwise_convolution(inputs, kernel[:1, :1], (2, 2), "SAME")


def test_up_convolution_equals_xlas_transposed_convolution():
    inputs = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 4, 6))

    def transposed(x, k):
        # lax leaves the kernel un-flipped, which is the flip of the textbook's definition.
        return lax.conv_transpose(x, k[::-1, ::-1], (2, 2), "VALID", dimension_numbers=DIMENSIONS)

    assert_same_values_and_gradients(up_convolution, transposed, inputs, kernel)


def test_up_convolution_writes_each_pixel_into_its_own_block():
    inputs = np.zeros((1, 2, 2, 1), np.float32)
    inputs[0, 1, 0, 0] = 3
    kernel = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1, 1)
    expected = np.zeros((4, 4))
    expected[2:, :2] = [[3, 6], [9, 12]]
    np.testing.assert_array_equal(up_convolution(inputs, kernel)[0, :, :, 0], expected)
