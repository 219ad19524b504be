"""Convolutions in forms that XLA runs fast, exact to float rounding.

`SEGJAX_CONVOLUTION=plain` in the environment turns them off: every convolution is then XLA's own,
but for 1×1 convolutions at stride 1, which are matrix products. The setting is read when a function
is traced. `segjax.training.compiler` has its other value.
"""

import os
from typing import Literal, get_args

import jax.numpy as jnp

from segjax.ops.convolution.operators import convolve
from segjax.ops.convolution.taps import Taps, dot, outputs_inside, plain
from segjax.ops.devices import rows_are_shared, share_rows

Padding = Literal["SAME", "VALID"]
# The fewest channels of input and output for the CPU's forms of larger kernels. With fewer, the
# copies around the products of the kernel gradient take as long as the products.
MIN_CHANNELS = 16


def up_convolution(inputs, kernel):
    """Computes the 2×2 up-convolution: output (2i+a, 2j+b) = kernel[a, b]ᵀ · input (i, j).

    The windows of this transposed convolution do not overlap, so each row of the kernel is one
    matrix product that gives whole rows of the output. On CPU, XLA's own transposed convolution has
    a very slow kernel gradient (jax#23783).

    Args:
      inputs: [batch, height, width, in].
      kernel: [2, 2, in, out]; PyTorch's `ConvTranspose2d` weight [in, out, 2, 2] transposed.

    Returns:
      [batch, 2·height, 2·width, out].
    """
    batch, height, width, _ = inputs.shape
    rows, columns, channels, features = kernel.shape
    matrices = kernel.swapaxes(1, 2).reshape(rows, channels, columns * features)
    inputs = share_rows(inputs)
    interleaved = jnp.stack([dot(inputs, matrix) for matrix in matrices], axis=2)
    outputs = interleaved.reshape(batch, rows * height, columns * width, features)
    return share_rows(outputs, least=height)


def convolution(inputs, kernel, *, stride=1, rate=1, groups=1, padding: Padding = "SAME"):
    """Computes a convolution that pads each side by rate · (kernel size − 1) / 2 with zeros.

    Odd total padding puts the extra row at the end. Output position i is centred on input position
    i · stride.

    Kernel rows and columns that meet only padding are dropped. The rest runs in the form that is
    fastest on the platform (`segjax.ops.convolution.cpu` and `.tpu`). Derivatives of any order work
    in forward and reverse mode, on every platform.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in / groups, out].
      stride: distance between the centres of neighbouring outputs.
      rate: atrous rate, the distance between the kernel's taps.
      groups: number of groups of channels that are convolved separately; one channel per group is a
        depthwise convolution.
      padding: "SAME" as above; "VALID" does not pad.

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, out]. "VALID" first shortens height and width by
      rate · (kernel size − 1).

    Raises:
      TypeError: inputs and kernel differ in dtype.
      ValueError: padding is neither "SAME" nor "VALID".
    """
    if padding not in get_args(Padding):
        raise ValueError(f"padding is one of {get_args(Padding)}; got {padding!r}")
    padded = padding == "SAME"
    if inputs.dtype != kernel.dtype:
        raise TypeError(f"inputs of {inputs.dtype} with a kernel of {kernel.dtype}: cast one")
    rows, columns = (_offsets(count, rate, padded) for count in kernel.shape[:2])
    sizes = inputs.shape[1:3]
    taps = Taps(rows, columns, stride, rate, groups, padded, rows_are_shared())
    if not all(isinstance(size, int) for size in sizes):  # symbolic sizes of `jax.export`
        return plain(inputs, kernel, taps)
    lost = 0 if padded else rows[-1]
    least = -(-(sizes[0] - lost) // stride)
    inputs = share_rows(inputs, least=least)
    return share_rows(_of_touching(inputs, kernel, taps), least=least)


def _of_touching(inputs, kernel, taps):
    """Computes the convolution with the rows and columns of the kernel that meet the map."""
    if taps.padded:
        kept = [
            _touching(offsets, size, taps.stride)
            for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True)
        ]
        kernel = kernel[kept[0], kept[1]]
        taps = taps._replace(rows=taps.rows[kept[0]], columns=taps.columns[kept[1]])
    if taps.is_point and taps.stride == 1:
        return dot(inputs, kernel[0, 0])
    # On GPUs, a product of a strided slice has a gradient at which XLA of jax 0.10.2 to 0.11.2
    # aborts the process (openxla/xla#47381). There a strided 1×1 convolution is XLA's own.
    dense = taps.groups == 1 and taps.stride == 1 and min(kernel.shape[2:]) >= MIN_CHANNELS
    depthwise = taps.groups > 1 and kernel.shape[2:] == (1, taps.groups) and taps.padded
    if (dense or depthwise or taps.is_point) and _forms_are_on():
        return convolve(inputs, kernel, taps)
    return plain(inputs, kernel, taps)


def convolution_setting() -> Literal["", "plain", "onednn"]:
    """Returns `SEGJAX_CONVOLUTION` of the environment.

    Raises:
      ValueError: it is another word.
    """
    setting = os.environ.get("SEGJAX_CONVOLUTION", "")
    if setting not in ("", "plain", "onednn"):
        raise ValueError(f"SEGJAX_CONVOLUTION={setting!r}; expected 'plain', 'onednn' or nothing")
    return setting


def _forms_are_on() -> bool:
    return convolution_setting() != "plain"


def _offsets(count, rate, padded):
    """Returns the offsets of `count` taps along one axis."""
    first = -(rate * (count - 1) // 2) if padded else 0
    return tuple(range(first, first + rate * count, rate))


def _touching(offsets, size, stride):
    """Returns the slice of taps that meet the map, or all taps if an even kernel misses it."""
    touching = [i for i, offset in enumerate(offsets) if outputs_inside(offset, size, stride)]
    return slice(touching[0], touching[-1] + 1) if touching else slice(len(offsets))
