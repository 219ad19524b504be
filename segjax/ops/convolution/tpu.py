"""The forms of a convolution that are fastest on TPU.

A 1×1 kernel is a matrix product. The others are XLA's own convolutions: of few channels over pairs
of columns (`in_pairs`), the rest with a third spatial axis (`uncut`).
"""

import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution.taps import plain, product
from segjax.ops.linear import transposed

LANES = 128  # the width of a TPU's vectors and of its matrix unit


def forward(inputs, kernel, taps):
    """Computes the convolution."""
    return form_of(kernel, taps)(inputs, kernel, taps)


def input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs; only the inputs' shape and dtype are read."""
    form = form_of(kernel, taps)
    return transposed(lambda x: form(x, kernel, taps), inputs, gradient)


def kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel; only the kernel's shape and dtype are read."""
    form = form_of(kernel, taps)
    return transposed(lambda k: form(inputs, k, taps), kernel, gradient)


def form_of(kernel, taps):
    """Returns the form of the convolution's output; only the kernel's shape is read."""
    if taps.shared:  # the others would gather whole maps
        return plain
    if taps.is_point:
        return product
    few, many = sorted(kernel.shape[2:])
    is_narrow = taps.groups == 1 and few <= LANES // 2 and many <= LANES
    return in_pairs if is_narrow and taps.stride == taps.rate == 1 else uncut


def uncut(inputs, kernel, taps):
    """Computes a convolution of maps with a third spatial axis, of length one.

    XLA:TPU cuts the last spatial axis of small batches into eight strips and copies the maps into
    this layout and back, which takes up to six times as long as the convolution. It cuts no axis
    along which the kernel is dilated ("IsConvSuitableForSpaceToBatch" in XLA). On an axis of length
    one, dilation changes nothing else.
    """
    output = lax.conv_general_dilated(
        inputs[:, :, :, None],
        kernel[:, :, None],
        window_strides=(taps.stride, taps.stride, 1),
        padding=[*taps.padding, (0, 0)],
        rhs_dilation=(taps.rate, taps.rate, 2),
        dimension_numbers=("NHWDC", "HWDIO", "NHWDC"),
        feature_group_count=taps.groups,
    )
    return output[:, :, :, 0]


def in_pairs(inputs, kernel, taps):
    """Computes a convolution of stride and rate 1 whose positions are pairs of columns.

    A map of 64 channels would leave half of a TPU's lanes empty, and its products three quarters of
    the matrix unit. A pair of columns has twice the channels. The kernel of 3 columns then has 2,
    one third more numbers for two outputs, and these are zeros.
    """
    _, count, channels, features = kernel.shape
    rows, (left, right) = taps.padding
    batch, _, width, _ = inputs.shape
    outputs = left + width + right - count + 1
    pairs = -(-outputs // 2)
    reach = 2 * (
        count // 2 + 1
    )  # the columns that a pair of outputs reads, and one for even kernels
    missing = 2 * pairs + reach - 2 - (left + width + right)
    around = [(0, 0, 0), (0, 0, 0), (left, right + missing, 0), (0, 0, 0)]
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), around)
    kernels = [
        jnp.pad(kernel, [(0, 0), (place, reach - count - place), (0, 0), (0, 0)])
        for place in (0, 1)
    ]
    output = lax.conv_general_dilated(
        padded.reshape(*padded.shape[:2], -1, 2 * channels),
        jnp.concatenate([k.reshape(len(k), -1, 2 * channels, features) for k in kernels], axis=3),
        window_strides=(1, 1),
        padding=[rows, (0, 0)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return output.reshape(batch, -1, 2 * pairs, features)[:, :, :outputs]
