"""The taps of a convolution, and what its forms have in common."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Taps(NamedTuple):
    """Distances of the input positions that an output reads from the output's centre.

    Attributes:
      rows, columns: the distances; output (i, j) has its centre at (i · stride, j · stride).
      stride: distance of the centres of neighbouring outputs.
      rate: distance of neighbouring taps.
      groups: number of groups of channels that are convolved separately.
      padded: whether positions beyond the map are read as zeros; otherwise all outputs read inside
        the map, and the centre is the first tap.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stride: int
    rate: int
    groups: int
    padded: bool

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and after the map, for both axes."""
        return [(-of[0], of[-1]) if self.padded else (0, 0) for of in (self.rows, self.columns)]


def outputs_inside(offset, size, stride):
    """Returns the outputs i of a padded map for which i · stride + offset lies on the map."""
    return range(max(0, -(offset // stride)), min(-(-size // stride), -((offset - size) // stride)))


def output_sizes(inputs, taps):
    """Returns height and width of the output at stride 1."""
    (height, width), (rows, columns) = inputs.shape[1:3], (taps.rows[-1], taps.columns[-1])
    return (height, width) if taps.padded else (height - rows, width - columns)


def pad(x, taps):
    """Pads the map with the zeros that the taps read.

    Offset o of output i is then at i · stride + o − offsets[0].
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


def dot(x, matrix, dtype=None):
    """Multiplies the last axis of x with the first of the matrix, and sums in a dtype."""
    # With two axes only: on CPU the gradient of a larger product reads transposed copies.
    product = jnp.matmul(positions(x), matrix, preferred_element_type=dtype)
    return product.reshape(*x.shape[:-1], matrix.shape[-1])


def positions(x):
    """Flattens a map to [batch · height · width, channels]."""
    return x.reshape(-1, x.shape[-1])
