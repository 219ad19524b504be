"""The taps of a convolution, XLA's own convolution, and helpers that its forms share."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from segjax.ops.devices import rows_are_shared
from segjax.ops.linear import transposed


class Taps(NamedTuple):
    """The offsets from an output's centre to the input positions that it reads.

    Attributes:
      rows, columns: the offsets; the centre of output (i, j) is (i · stride, j · stride).
      stride: distance between the centres of neighbouring outputs.
      rate: distance between neighbouring taps.
      groups: number of groups of channels that are convolved separately.
      padded: whether positions beyond the map are read as zeros. Otherwise all outputs read inside
        the map, and the centre is the first tap.
      shared: whether several devices share the rows of the map. Only XLA's own convolution then
        reads no more than the rows around a device's own.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stride: int
    rate: int
    groups: int
    padded: bool
    shared: bool = False

    @property
    def padding(self) -> list[tuple[int, int]]:
        """The number of zeros before and after the map, for both axes."""
        return [(-of[0], of[-1]) if self.padded else (0, 0) for of in (self.rows, self.columns)]

    @property
    def is_point(self) -> bool:
        """Whether each output reads one position, over all channels: a 1×1 convolution."""
        return self.rows == self.columns == (0,) and self.groups == 1


def outputs_inside(offset, size, stride):
    """Returns the outputs i of a padded map for which i · stride + offset lies on the map."""
    return range(max(0, -(offset // stride)), min(-(-size // stride), -((offset - size) // stride)))


def output_sizes(inputs, taps):
    """Returns height and width of the output at stride 1."""
    (height, width), (rows, columns) = inputs.shape[1:3], (taps.rows[-1], taps.columns[-1])
    return (height, width) if taps.padded else (height - rows, width - columns)


def pad(x, taps):
    """Pads the map with the zeros that the taps read.

    The tap of output i at offset o is then at i · stride + o − offsets[0].
    """
    around = [(before, after, 0) for before, after in taps.padding]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def plain(inputs, kernel, taps):
    """Computes the convolution in XLA's own form."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(taps.stride, taps.stride),
        padding=taps.padding,
        rhs_dilation=(taps.rate, taps.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=taps.groups,
    )


def plain_input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs by XLA; only the inputs' shape and dtype are read."""
    return transposed(lambda x: plain(x, kernel, taps), inputs, gradient)


def plain_kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel by XLA; only the kernel's shape and dtype are read."""
    return transposed(lambda k: plain(inputs, k, taps), kernel, gradient)


def product(inputs, kernel, taps):
    """Computes a 1×1 convolution as one matrix product of the positions that it reads."""
    return dot(inputs[:, :: taps.stride, :: taps.stride], kernel[0, 0])


def product_input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs of `product`; only their shape and dtype are read."""
    return transposed(lambda x: product(x, kernel, taps), inputs, gradient)


def product_kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel of `product`; only its shape and dtype are read."""
    return transposed(lambda k: product(inputs, k, taps), kernel, gradient)


def dot(x, matrix, dtype=None):
    """Multiplies the last axis of x with the first axis of the matrix, and sums in `dtype`."""
    if rows_are_shared():  # flattening would mix them with other axes
        axes = (((x.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(x, matrix, axes, preferred_element_type=dtype)
    # Products of two axes only: on CPU, the gradient of a larger one reads transposed copies.
    product = jnp.matmul(positions(x), matrix, preferred_element_type=dtype)
    return product.reshape(*x.shape[:-1], matrix.shape[-1])


def positions(x):
    """Flattens a map to [batch · height · width, channels]."""
    return x.reshape(-1, x.shape[-1])
