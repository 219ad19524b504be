"""Convolutions in forms that XLA runs fast, exact to float rounding."""

import functools
import itertools
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

    Raises:
      TypeError: inputs and kernel differ in dtype.
    """
    if inputs.dtype != kernel.dtype:
        raise TypeError(f"inputs of {inputs.dtype} with a kernel of {kernel.dtype}: cast one")
    offsets = [_offsets(taps, rate) for taps in kernel.shape[:2]]
    sizes = inputs.shape[1:3]
    if not all(isinstance(size, int) for size in sizes):  # open, in a function for `jax.export`
        return _plain(inputs, kernel, _Taps(*offsets, stride, rate, groups))
    rows, columns = (_touching(of, size, stride) for of, size in zip(offsets, sizes, strict=True))
    kernel = kernel[rows, columns]
    taps = _Taps(offsets[0][rows], offsets[1][columns], stride, rate, groups)
    if taps.rows == taps.columns == (0,) and groups == 1:
        return _dot(inputs[:, ::stride, ::stride], kernel[0, 0])
    # Products of fewer than 128 channels take no more time than the copies around them.
    dense = groups == 1 and stride == 1 and min(kernel.shape[2:]) >= 128
    depthwise = groups > 1 and kernel.shape[2:] == (1, groups)
    if dense or depthwise:
        return _fastest_convolution(inputs, kernel, taps)
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


def _mostly_outside(inputs, taps):
    """Whether over a fifth of all (output position, tap) pairs read padding: it pays to skip it."""
    share_inside = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        inside = [len(_outputs_inside(offset, size, taps.stride)) for offset in offsets]
        share_inside *= sum(inside) / (len(inside) * -(-size // taps.stride))
    return share_inside < 0.8


def _sum_dtype(inputs):
    return jnp.float64 if inputs.dtype == jnp.float64 else jnp.float32


def _dot(x, matrix, dtype=None):
    return jnp.tensordot(x, matrix, axes=1, preferred_element_type=dtype)


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


def _plain_gradients(inputs, kernel, gradient, taps):
    return jax.vjp(functools.partial(_plain, taps=taps), inputs, kernel)[1](gradient)


def _by_platform(cpu_form, default, taps, *arrays):
    cpu_form, default = (functools.partial(form, taps=taps) for form in (cpu_form, default))
    return lax.platform_dependent(*arrays, cpu=cpu_form, default=default)


def _fastest_form(inputs, kernel, taps):
    return _by_platform(_cpu_forward, _plain, taps, inputs, kernel)


def _forward(inputs, kernel, taps):
    return _fastest_form(inputs, kernel, taps), (inputs, kernel)


def _backward(taps, residuals, gradient):
    return _by_platform(_cpu_gradients, _plain_gradients, taps, *residuals, gradient)


# A custom gradient around the choice of platform, and not around each form, so that what is kept
# for the backward pass is the same on every platform: the input and the kernel, no windows of it.
_fastest_convolution = jax.custom_vjp(_fastest_form, nondiff_argnums=(2,))
_fastest_convolution.defvjp(_forward, _backward)


def _cpu_forward(inputs, kernel, taps):
    if taps.groups > 1:
        return _sum_of_shifts(inputs, kernel, taps)
    form = _sum_of_products if _mostly_outside(inputs, taps) else _plain
    return form(inputs, kernel, taps)


def _cpu_gradients(inputs, kernel, gradient, taps):
    if taps.groups == 1 and _mostly_outside(inputs, taps):
        rows, columns = (tuple(-offset for offset in of) for of in (taps.rows, taps.columns))
        mirrored = taps._replace(rows=rows, columns=columns)
        input_gradient = _sum_of_products(gradient, kernel.swapaxes(2, 3), mirrored)
        kernel_gradient = _products_kernel_gradient(inputs, gradient, taps)
    else:
        pull_back = jax.vjp(lambda x: _cpu_forward(x, kernel, taps), inputs)[1]
        (input_gradient,) = pull_back(gradient)
        form = _shifts_kernel_gradient if taps.groups > 1 else _row_stacked_kernel_gradient
        kernel_gradient = form(inputs, gradient, taps)
    return input_gradient, kernel_gradient.astype(kernel.dtype)


def _windows(sizes, taps):
    """What each tap that touches the map reads of it, and the equally large part it adds to."""
    for (i, row), (j, column) in itertools.product(enumerate(taps.rows), enumerate(taps.columns)):
        y, x = _outputs_inside(row, sizes[0], 1), _outputs_inside(column, sizes[1], 1)
        if y and x:
            read = slice(y.start + row, y.stop + row), slice(x.start + column, x.stop + column)
            write = slice(y.start, y.stop), slice(x.start, x.stop)
            yield (i, j), (slice(None), *read), (slice(None), *write)


def _sum_of_products(inputs, kernel, taps):
    """At stride 1, each tap's product with the part of the map that it meets, without padding.

    At rate 18 on 33×33 that is 40 % of the plain form's arithmetic. The parts are added in place:
    padded and added, they would be fused into every reader of the sum and computed again there.
    """
    total = jnp.zeros((*inputs.shape[:3], kernel.shape[3]), _sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        total = total.at[write].add(_dot(inputs[read], kernel[tap], total.dtype))
    return total.astype(inputs.dtype)


def _products_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient of `_sum_of_products`."""
    shape = len(taps.rows), len(taps.columns), inputs.shape[3], gradient.shape[3]
    total = jnp.zeros(shape, _sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        window, part = (x.reshape(-1, x.shape[-1]) for x in (inputs[read], gradient[write]))
        total = total.at[tap].set(_dot(window.T, part, total.dtype))
    return total


def _sum_of_shifts(inputs, kernel, taps):
    """A depthwise convolution as the sum of shifted maps times vectors: one fused loop in XLA."""
    stride, dtype = taps.stride, _sum_dtype(inputs)
    height, width = (-(-size // stride) for size in inputs.shape[1:3])
    padded = _pad(inputs, taps)
    total = jnp.zeros((inputs.shape[0], height, width, inputs.shape[3]), dtype)
    for i, j in itertools.product(range(len(taps.rows)), range(len(taps.columns))):
        y, x = i * taps.rate, j * taps.rate
        rows = slice(y, y + stride * (height - 1) + 1, stride)
        columns = slice(x, x + stride * (width - 1) + 1, stride)
        vector = kernel[i : i + 1, j : j + 1].astype(dtype)
        total += padded[:, rows, columns].astype(dtype) * vector
    return total.astype(inputs.dtype)


def _shifts_kernel_gradient(inputs, gradient, taps):
    """Adds up gradient · shifted input over the map's rows, and only then over a row.

    XLA does not vectorise a reduction to one value per channel on CPU; these sums it does.
    """
    batch, height, width, channels = gradient.shape
    stride, rate, dtype = taps.stride, taps.rate, _sum_dtype(inputs)
    shape = len(taps.rows), len(taps.columns), 1, channels
    number, padded = shape[0] * shape[1], _pad(inputs, taps)
    read = (batch, 1, stride * (width - 1) + 1, channels)

    def add_row(i, sums):  # one loop over rows and taps compiles faster than taps written out
        row, tap = i // number, i % number
        top, left = tap // shape[1] * rate, tap % shape[1] * rate
        window = lax.dynamic_slice(padded, (0, row * stride + top, left, 0), read)[:, :, ::stride]
        product = lax.dynamic_slice_in_dim(gradient, row, 1, 1).astype(dtype) * window.astype(dtype)
        return sums.at[tap].add(product)

    sums = jnp.zeros((number, batch, 1, width, channels), dtype)
    return lax.fori_loop(0, height * number, add_row, sums).sum((1, 2, 3)).reshape(shape)


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
    windows = (padded[(y - top) * row_length :][:length] for y in taps.rows)
    products = [_dot(window.T, shifted[:length], _sum_dtype(inputs)) for window in windows]
    shape = (len(taps.rows), inputs.shape[3], len(taps.columns), gradient.shape[3])
    return jnp.stack(products).reshape(shape).swapaxes(1, 2)
