"""What a convolution reads, and what its forms have in common."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax


class Taps(NamedTuple):
    """What an output position reads: input positions at these distances from its centre.

    Attributes:
      rows, columns: the distances; of output (i, j) the centre is at (i · stride, j · stride).
      padded: whether positions beyond the map are read as zeros; otherwise all outputs read inside
        it, and the centre is the first tap.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stride: int
    rate: int
    groups: int
    padded: bool

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and after the map, of both axes."""
        return [(-of[0], of[-1]) if self.padded else (0, 0) for of in (self.rows, self.columns)]


def outputs_inside(offset, size, stride):
    """The output positions i, of a padded map, of which i · stride + offset lies on the map."""
    return range(max(0, -(offset // stride)), min(-(-size // stride), -((offset - size) // stride)))


def output_sizes(inputs, taps):
    """Height and width at stride 1."""
    (height, width), (rows, columns) = inputs.shape[1:3], (taps.rows[-1], taps.columns[-1])
    return (height, width) if taps.padded else (height - rows, width - columns)


def pad(x, taps):
    """Pads by what the taps read; offset o of output i is then at i · stride + o − offsets[0]."""
    around = [(before, after, 0) for before, after in taps.padding]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def plain(inputs, kernel, taps):
    """XLA's own convolution."""
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
    """The product over the last axis of x and the first of the matrix, summed in a dtype."""
    # Of two axes: the gradient of a product of more is computed from transposed copies on CPU.
    product = jnp.matmul(positions(x), matrix, preferred_element_type=dtype)
    return product.reshape(*x.shape[:-1], matrix.shape[-1])


def positions(x):
    """All positions of a map in one row: [batch · height · width, channels]."""
    return x.reshape(-1, x.shape[-1])
