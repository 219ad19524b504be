"""Convolutions in forms that XLA runs fast, exact to float rounding."""

import functools
from typing import NamedTuple

import jax
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

    Kernel rows and columns that meet only padding are dropped. On CPU, what remains runs in the
    form that is fastest there (`_cpu_forward`, `_cpu_gradients`; experiments/benchmarks has the
    measurements). Gradients of any order and `jax.hessian` go through it; `jax.jvp` does not.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in / groups, out].
      stride: of the output's positions.
      rate: atrous rate, the distance between the kernel's taps.
      groups: of channels that are convolved apart; as many as there are channels is depthwise.

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, out].
    """
    offsets = [_offsets(taps, rate) for taps in kernel.shape[:2]]
    sizes = inputs.shape[1:3]
    if not all(isinstance(size, int) for size in sizes):  # exported for any size
        return _plain(inputs, kernel, _Taps(*offsets, stride, rate, groups))
    rows, columns = (_touching(of, size, stride) for of, size in zip(offsets, sizes, strict=True))
    kernel = kernel[rows, columns]
    taps = _Taps(offsets[0][rows], offsets[1][columns], stride, rate, groups)

    if taps.rows == taps.columns == (0,) and groups == 1:
        return _dot(inputs[:, ::stride, ::stride], kernel[0, 0])
    dense = groups == 1 and stride == 1 and min(kernel.shape[2:]) >= 32
    if dense or _is_depthwise(kernel, taps):
        return _by_platform(inputs, kernel, taps)
    return _plain(inputs, kernel, taps)


class _Taps(NamedTuple):
    """What an output position reads: input positions at these distances from its centre."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stride: int
    rate: int
    groups: int


def _offsets(taps, rate):
    first = -(rate * (taps - 1) // 2)
    return tuple(range(first, first + rate * taps, rate))


def _outputs_inside(offset, size, stride):
    """The output positions i of which i · stride + offset lies on the map."""
    return range(max(0, -(offset // stride)), min(-(-size // stride), -((offset - size) // stride)))


def _touching(offsets, size, stride):
    """The slice of the taps that meet the map; all, if an even kernel's all miss it."""
    touching = [i for i, offset in enumerate(offsets) if _outputs_inside(offset, size, stride)]
    return slice(touching[0], touching[-1] + 1) if touching else slice(len(offsets))


def _share_inside(inputs, taps):
    """The share of all (output position, tap) pairs that read the map and not its padding."""
    share = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        inside = [len(_outputs_inside(offset, size, taps.stride)) for offset in offsets]
        share *= sum(inside) / (len(inside) * -(-size // taps.stride))
    return share


def _is_depthwise(kernel, taps):
    return kernel.shape[2] == 1 and kernel.shape[3] == taps.groups


def _sum_dtype(inputs):
    return jnp.float64 if inputs.dtype == jnp.float64 else jnp.float32


def _dot(x, matrix, dtype=None):
    axes = ((x.ndim - 1,), (0,)), ((), ())
    return lax.dot_general(x, matrix, axes, preferred_element_type=dtype)


def _pad(x, taps):
    """Pads by what the taps read; offset o of output i is then at i · stride + o − offsets[0]."""
    around = [(-of[0], of[-1], 0) for of in (taps.rows, taps.columns)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def _plain(inputs, kernel, taps):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(taps.stride, taps.stride),
        padding=[(-of[0], of[-1]) for of in (taps.rows, taps.columns)],
        rhs_dilation=(taps.rate, taps.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=taps.groups,
    )


def _on_platform(inputs, kernel, taps):
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_cpu_forward, taps=taps),
        default=functools.partial(_plain, taps=taps),
    )


def _forward(inputs, kernel, taps):
    return _on_platform(inputs, kernel, taps), (inputs, kernel)


def _backward(taps, residuals, gradient):
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=functools.partial(_cpu_gradients, taps=taps),
        default=functools.partial(_gradients_of, _plain, taps=taps),
    )


# A custom gradient around the choice of platform, and not around each form, so that what is kept
# for the backward pass is the same on every platform: the input and the kernel, no windows of it.
_by_platform = jax.custom_vjp(_on_platform, nondiff_argnums=(2,))
_by_platform.defvjp(_forward, _backward)


def _gradients_of(form, inputs, kernel, gradient, taps):
    return jax.vjp(functools.partial(form, taps=taps), inputs, kernel)[1](gradient)


def _cpu_forward(inputs, kernel, taps):
    return _cpu_form(inputs, kernel, taps)(inputs, kernel, taps)


def _cpu_form(inputs, kernel, taps):
    if _is_depthwise(kernel, taps):
        return _sum_of_shifts
    return _sum_of_products if _share_inside(inputs, taps) < 0.8 else _plain


def _cpu_gradients(inputs, kernel, gradient, taps):
    form = _cpu_form(inputs, kernel, taps)
    inputs_gradient, kernel_gradient = _gradients_of(form, inputs, kernel, gradient, taps)
    if form is _sum_of_shifts:
        kernel_gradient = _depthwise_kernel_gradient(inputs, gradient, taps)
    elif form is _plain:
        kernel_gradient = _row_stacked_kernel_gradient(inputs, gradient, taps)
    return inputs_gradient, kernel_gradient.astype(kernel.dtype)


def _sum_of_products(inputs, kernel, taps):
    """Each tap's product with the window of the map that it meets, and with no padding.

    At rate 18 on 33×33 that is 40 % of the plain form's arithmetic.
    """
    stride, (height, width) = taps.stride, inputs.shape[1:3]
    shape = (inputs.shape[0], -(-height // stride), -(-width // stride), kernel.shape[3])
    total = jnp.zeros(shape, _sum_dtype(inputs))
    for i, row in enumerate(taps.rows):
        for j, column in enumerate(taps.columns):
            y, x = (_outputs_inside(row, height, stride), _outputs_inside(column, width, stride))
            if y and x:
                read_rows = slice(y[0] * stride + row, y[-1] * stride + row + 1, stride)
                read_columns = slice(x[0] * stride + column, x[-1] * stride + column + 1, stride)
                product = _dot(inputs[:, read_rows, read_columns], kernel[i, j], total.dtype)
                around = [(0, 0), (y[0], shape[1] - y.stop), (x[0], shape[2] - x.stop), (0, 0)]
                total += jnp.pad(product, around)
    return total.astype(inputs.dtype)


def _sum_of_shifts(inputs, kernel, taps):
    """A depthwise convolution as the sum of shifted maps times vectors: one fused loop in XLA."""
    stride, dtype = taps.stride, _sum_dtype(inputs)
    height, width = (-(-size // stride) for size in inputs.shape[1:3])
    padded = _pad(inputs, taps)
    total = jnp.zeros((inputs.shape[0], height, width, inputs.shape[3]), dtype)
    for i, row in enumerate(taps.rows):
        for j, column in enumerate(taps.columns):
            y, x = row - taps.rows[0], column - taps.columns[0]
            rows = slice(y, y + stride * (height - 1) + 1, stride)
            columns = slice(x, x + stride * (width - 1) + 1, stride)
            vector = kernel[i : i + 1, j : j + 1].astype(dtype)
            total += padded[:, rows, columns].astype(dtype) * vector
    return total.astype(inputs.dtype)


def _depthwise_kernel_gradient(inputs, gradient, taps):
    """Adds up gradient · shifted input over the map's rows, and only then over a row.

    XLA does not vectorise a reduction to one value per channel on CPU; these sums it does.
    """
    batch, height, width, channels = gradient.shape
    stride, rate, dtype = taps.stride, taps.rate, _sum_dtype(inputs)
    kernel_rows, kernel_columns = len(taps.rows), len(taps.columns)
    number = kernel_rows * kernel_columns
    padded = _pad(inputs, taps)
    read = (batch, 1, stride * (width - 1) + 1, channels)

    def add_row(i, sums):  # a loop over rows and taps compiles faster than one over rows
        row, tap = i // number, i % number
        top, left = tap // kernel_columns * rate, tap % kernel_columns * rate
        window = lax.dynamic_slice(padded, (0, row * stride + top, left, 0), read)[:, :, ::stride]
        product = lax.dynamic_slice_in_dim(gradient, row, 1, 1).astype(dtype) * window.astype(dtype)
        return sums.at[tap].add(product)

    sums = jnp.zeros((number, batch, 1, width, channels), dtype)
    sums = lax.fori_loop(0, height * number, add_row, sums).sum((1, 2, 3))
    return sums.reshape(kernel_rows, kernel_columns, 1, channels)


def _row_stacked_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient at stride 1, as one matrix product for each of its rows.

    Padded input and gradient lie on one grid, where a kernel row is a shift by whole rows, so that
    no window of the input is copied; the columns' shifts of the gradient stand side by side.
    """
    top, left = taps.rows[0], taps.columns[0]
    below = taps.rows[-1] - top
    shifted = [
        jnp.pad(gradient, ((0, 0), (0, below), (x - left, taps.columns[-1] - x), (0, 0)))
        for x in taps.columns
    ]
    grids = _pad(inputs, taps), jnp.concatenate(shifted, axis=-1)
    row_length = grids[0].shape[2]
    padded, shifted = (grid.reshape(-1, grid.shape[-1]) for grid in grids)
    length = padded.shape[0] - below * row_length  # what follows is the gradient's rows of zeros
    products = [
        _dot(padded[(y - top) * row_length :][:length].T, shifted[:length], _sum_dtype(inputs))
        for y in taps.rows
    ]
    shape = (len(taps.rows), inputs.shape[3], len(taps.columns), gradient.shape[3])
    return jnp.stack(products).reshape(shape).swapaxes(1, 2)
