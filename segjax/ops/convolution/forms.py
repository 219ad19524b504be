"""Convolutions in forms that XLA runs fast, exact to float rounding.

`SEGJAX_CONVOLUTION=plain` in the environment turns the CPU's forms off: every convolution is then
XLA's own, and forward-mode differentiation (`jax.jvp`, `jax.linearize`, `jax.jacfwd`) works. It is
read when a function is traced.
"""

import functools
import os
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution import cpu as cpu_convolution
from segjax.ops.convolution.taps import Taps, dot, outputs_inside, plain

Padding = Literal["SAME", "VALID"]
MIN_CHANNELS = 16  # of input and output, for the CPU's own form of the kernel gradient


def linen_convolution(
    inputs,
    kernel,
    window_strides,
    padding,
    *,
    rhs_dilation=None,
    feature_group_count=1,
    **options,
):
    """Computes `convolution` with the arguments of `lax.conv_general_dilated`.

    It goes into a Linen layer, which keeps Flax's parameters, as
    `nn.Conv(features, (3, 3), conv_general_dilated=linen_convolution)`. "SAME" is the same as
    XLA's at stride 1.

    Raises:
      ValueError: stride or rate differ between the axes; padding is neither "SAME" nor "VALID"; or
        "SAME" comes with a stride, where XLA pads otherwise.
    """
    del options  # layouts and transposes that nn.Conv leaves at their defaults
    (stride, *strides), (rate, *rates) = window_strides, rhs_dilation or (1, 1)
    if strides != [stride] or rates != [rate]:
        raise ValueError(f"one stride and one rate; got {window_strides} and {rhs_dilation}")
    if stride > 1 and padding == "SAME":
        raise ValueError(
            f'"SAME" padding at stride {stride}: take segjax.models.layers.Convolution'
        )
    return convolution(
        inputs, kernel, stride=stride, rate=rate, groups=feature_group_count, padding=padding
    )


def up_convolution(inputs, kernel):
    """Computes the 2×2 up-convolution: output (2i+a, 2j+b) = kernel[a, b]ᵀ · input (i, j).

    The windows of this transposed convolution do not overlap: each row of the kernel is a matrix
    product, whose results are whole rows of the output. On CPU, XLA's own transposed convolution
    has a very slow kernel gradient (jax#23783).

    Args:
      inputs: [batch, height, width, in].
      kernel: [2, 2, in, out]; PyTorch's `ConvTranspose2d` weight [in, out, 2, 2] transposed.

    Returns:
      [batch, 2·height, 2·width, out].
    """
    batch, height, width, _ = inputs.shape
    rows, columns, channels, features = kernel.shape
    matrices = kernel.swapaxes(1, 2).reshape(rows, channels, columns * features)
    interleaved = jnp.stack([dot(inputs, matrix) for matrix in matrices], axis=2)
    return interleaved.reshape(batch, rows * height, columns * width, features)


def convolution(inputs, kernel, *, stride=1, rate=1, groups=1, padding: Padding = "SAME"):
    """Computes a convolution that pads each side by rate · (kernel size − 1) / 2 with zeros.

    Odd total padding puts the extra row at the end. Output position i is centred on input position
    i · stride.

    Kernel rows and columns that meet only padding are dropped. On CPU, the rest runs in the fastest
    form there (`segjax.ops.convolution.cpu`). Gradients of any order and `jax.hessian` work;
    `jax.jvp` works with `SEGJAX_CONVOLUTION=plain`.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in / groups, out].
      stride: distance between the centres of neighbouring outputs.
      rate: atrous rate, the distance between the kernel's taps.
      groups: number of groups of channels that are convolved separately; one channel a group is
        depthwise.
      padding: "SAME" as above; "VALID" does not pad.

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, out]; "VALID" first takes rate · (kernel size −
      1) from height and width.

    Raises:
      TypeError: inputs and kernel differ in dtype.
      ValueError: there is no such padding.
    """
    if padding not in get_args(Padding):
        raise ValueError(f"padding is one of {get_args(Padding)}; got {padding!r}")
    padded = padding == "SAME"
    if inputs.dtype != kernel.dtype:
        raise TypeError(f"inputs of {inputs.dtype} with a kernel of {kernel.dtype}: cast one")
    offsets = [_offsets(taps, rate, padded) for taps in kernel.shape[:2]]
    sizes = inputs.shape[1:3]
    taps = Taps(*offsets, stride, rate, groups, padded)
    if not all(isinstance(size, int) for size in sizes):  # open, in a function for `jax.export`
        return plain(inputs, kernel, taps)
    if padded:
        rows, columns = (
            _touching(of, size, stride) for of, size in zip(offsets, sizes, strict=True)
        )
        kernel = kernel[rows, columns]
        taps = taps._replace(rows=offsets[0][rows], columns=offsets[1][columns])
    if taps.rows == taps.columns == (0,) and groups == 1:
        return dot(inputs[:, ::stride, ::stride], kernel[0, 0])
    # With fewer channels, the copies around the products take as long as the products.
    dense = groups == 1 and stride == 1 and min(kernel.shape[2:]) >= MIN_CHANNELS
    depthwise = groups > 1 and kernel.shape[2:] == (1, groups) and padded
    if (dense or depthwise) and _cpu_forms_are_on():
        return _fastest_convolution(inputs, kernel, taps)
    return plain(inputs, kernel, taps)


def _cpu_forms_are_on() -> bool:
    setting = os.environ.get("SEGJAX_CONVOLUTION", "")
    if setting not in ("", "plain"):
        raise ValueError(f"SEGJAX_CONVOLUTION={setting!r}; expected 'plain' or nothing")
    return not setting


def _offsets(taps, rate, padded):
    first = -(rate * (taps - 1) // 2) if padded else 0
    return tuple(range(first, first + rate * taps, rate))


def _touching(offsets, size, stride):
    """Returns the slice of taps that meet the map; all of them if an even kernel misses it."""
    touching = [i for i, offset in enumerate(offsets) if outputs_inside(offset, size, stride)]
    return slice(touching[0], touching[-1] + 1) if touching else slice(len(offsets))


def _plain_gradients(inputs, kernel, gradient, taps):
    return jax.vjp(functools.partial(plain, taps=taps), inputs, kernel)[1](gradient)


def _by_platform(cpu_form, default, taps, *arrays):
    cpu_form, default = (functools.partial(form, taps=taps) for form in (cpu_form, default))
    return lax.platform_dependent(*arrays, cpu=cpu_form, default=default)


def _fastest_form(inputs, kernel, taps):
    return _by_platform(cpu_convolution.forward, plain, taps, inputs, kernel)


def _forward(inputs, kernel, taps):
    return _fastest_form(inputs, kernel, taps), (inputs, kernel)


def _backward(taps, residuals, gradient):
    return _by_platform(cpu_convolution.gradients, _plain_gradients, taps, *residuals, gradient)


# A custom gradient around the choice of platform, and not around each form, so that what is kept
# for the backward pass is the same on every platform: the input and the kernel, no windows of it.
_fastest_convolution = jax.custom_vjp(_fastest_form, nondiff_argnums=(2,))
_fastest_convolution.defvjp(_forward, _backward)
