"""Convolutions in forms that XLA runs fast, exact to float rounding."""

import jax.numpy as jnp
from jax import lax


def pointwise_convolution(
    inputs, kernel, window_strides, padding, *, dimension_numbers=None, precision=None, **dilations
):
    """Computes a 1×1 convolution of stride 1 as a matrix product, faster than XLA's on CPU.

    Takes the arguments of `lax.conv_general_dilated`, so that it goes into a Linen layer as
    `nn.Conv(features, (1, 1), conv_general_dilated=pointwise_convolution)`, which keeps Flax's
    parameters. Dilations have no effect on a single tap.

    Args:
      inputs: [batch, height, width, in].
      kernel: [1, 1, in, out].

    Returns:
      [batch, height, width, out].

    Raises:
      ValueError: the kernel or the stride is larger than one.
    """
    del padding, dimension_numbers, dilations
    if kernel.shape[:2] != (1, 1) or tuple(window_strides) != (1, 1):
        raise ValueError(
            f"a pointwise convolution has a 1×1 kernel and stride 1; got kernel {kernel.shape[:2]} "
            f"and stride {tuple(window_strides)}"
        )
    return lax.dot_general(inputs, kernel[0, 0], (((3,), (0,)), ((), ())), precision=precision)


def up_convolution(inputs, kernel):
    """Computes the 2×2 up-convolution: output (2i+a, 2j+b) = kernel[a, b]ᵀ · input (i, j).

    The windows of this transposed convolution do not overlap, so that it is one matrix product
    and a depth-to-space. XLA's own transposed convolution has a very slow kernel gradient on CPU
    (jax#23783).

    Args:
      inputs: [batch, height, width, in].
      kernel: [2, 2, in, out]; PyTorch's `ConvTranspose2d` weight [in, out, 2, 2] transposed.

    Returns:
      [batch, 2·height, 2·width, out].
    """
    batch, height, width, _ = inputs.shape
    rows, columns, _, features = kernel.shape
    blocks = jnp.einsum("nhwi,abio->nhawbo", inputs, kernel)
    return blocks.reshape(batch, rows * height, columns * width, features)


def convolution(inputs, kernel, *, stride=1, rate=1, groups=1):
    """Computes a convolution that pads each side by rate · (kernel size − 1) / 2 with zeros.

    Of an even kernel's odd padding, the larger part goes to the end. Output position i is centred
    on input position i · stride.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in / groups, out].
      stride: of the output's positions.
      rate: atrous rate, the distance between the kernel's taps.
      groups: of channels that are convolved apart.

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, out].
    """
    if kernel.shape[:2] == (1, 1) and groups == 1:
        inputs = inputs[:, ::stride, ::stride]
        return lax.dot_general(inputs, kernel[0, 0], (((3,), (0,)), ((), ())))
    spans = [rate * (side - 1) for side in kernel.shape[:2]]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(stride, stride),
        padding=[(span // 2, span - span // 2) for span in spans],
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
