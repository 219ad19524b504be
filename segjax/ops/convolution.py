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
    form that is fastest there (`_cpu_forward`, `_cpu_gradients`), with gradients of any order,
    `jax.hessian` included; only `jax.jvp` does not go through it.

    Args:
      inputs: [batch, height, width, in].
      kernel: [kernel height, kernel width, in / groups, out].
      stride: of the output's positions.
      rate: atrous rate, the distance between the kernel's taps.
      groups: of channels that are convolved apart; as many as there are channels is depthwise.

    Returns:
      [batch, ⌈height / stride⌉, ⌈width / stride⌉, out].
    """
    sizes = inputs.shape[1:3]
    offsets = [_offsets(taps, rate) for taps in kernel.shape[:2]]
    static = all(isinstance(size, int) for size in sizes)  # not so when exported for any size
    if static:
        inside = [
            [i for i, offset in enumerate(of) if _reach(offset, size, stride)] or range(len(of))
            for of, size in zip(offsets, sizes, strict=True)
        ]
        rows, columns = (slice(kept[0], kept[-1] + 1) for kept in inside)
        kernel, offsets = kernel[rows, columns], [offsets[0][rows], offsets[1][columns]]
    taps = _Taps(*offsets, stride, rate, groups)

    if offsets == [(0,), (0,)] and groups == 1:
        return _dot(inputs[:, ::stride, ::stride], kernel[0, 0], inputs.dtype)
    if static and (_is_depthwise(kernel, taps) or (groups == 1 and stride == 1)):
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


def _reach(offset, size, stride):
    """The output positions i of which i · stride + offset lies inside the map."""
    return range(max(0, -(offset // stride)), min(-(-size // stride), -((offset - size) // stride)))


def _is_depthwise(kernel, taps):
    return kernel.shape[2] == 1 and kernel.shape[3] == taps.groups


def _dot(x, matrix, dtype):
    """x [..., in] · matrix [in, out], summed in float32 at least."""
    return lax.dot_general(
        x, matrix, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dtype
    )


def _plain(inputs, kernel, taps):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(taps.stride, taps.stride),
        padding=[(-offsets[0], offsets[-1]) for offsets in (taps.rows, taps.columns)],
        rhs_dilation=(taps.rate, taps.rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=taps.groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_platform(inputs, kernel, taps):
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_cpu_forward, taps=taps),
        default=functools.partial(_plain, taps=taps),
    )


def _forward(inputs, kernel, taps):
    return _by_platform(inputs, kernel, taps), (inputs, kernel)


def _backward(taps, residuals, gradient):
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=functools.partial(_cpu_gradients, taps=taps),
        default=functools.partial(_gradients_of, _plain, taps=taps),
    )


_by_platform.defvjp(_forward, _backward)


def _gradients_of(form, inputs, kernel, gradient, taps):
    return jax.vjp(functools.partial(form, taps=taps), inputs, kernel)[1](gradient)


def _cpu_forward(inputs, kernel, taps):
    if _is_depthwise(kernel, taps):
        return _sum_of_shifts(inputs, kernel, taps)
    form = _sum_of_products if _share_inside(inputs, taps) < 0.8 else _plain
    return form(inputs, kernel, taps)


def _cpu_gradients(inputs, kernel, gradient, taps):
    """The gradients of `_cpu_forward`, the kernel's by a form of its own where that is faster."""
    gradients = _gradients_of(_cpu_forward, inputs, kernel, gradient, taps)
    if _is_depthwise(kernel, taps):
        return gradients[0], _depthwise_kernel_gradient(inputs, kernel, gradient, taps)
    if _share_inside(inputs, taps) < 0.8:
        return gradients
    return gradients[0], _row_stacked_kernel_gradient(inputs, kernel, gradient, taps)


def _share_inside(inputs, taps):
    """The share of (output position, tap) pairs that read the map and not its padding."""
    share = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        outputs = len(offsets) * -(-size // taps.stride)
        share *= sum(len(_reach(offset, size, taps.stride)) for offset in offsets) / outputs
    return share


def _sum_of_products(inputs, kernel, taps):
    """Each tap's product with the window of the map that it meets, and with no padding.

    At rate 18 on a map of 33×33 that is 40 % of the plain form's arithmetic.
    """
    batch, height, width, _ = inputs.shape
    stride = taps.stride
    shape = (batch, -(-height // stride), -(-width // stride), kernel.shape[3])
    total = jnp.zeros(shape, jnp.promote_types(inputs.dtype, jnp.float32))
    for i, row in enumerate(taps.rows):
        for j, column in enumerate(taps.columns):
            y, x = _reach(row, height, stride), _reach(column, width, stride)
            if y and x:
                window = inputs[
                    :,
                    y[0] * stride + row : y[-1] * stride + row + 1 : stride,
                    x[0] * stride + column : x[-1] * stride + column + 1 : stride,
                ]
                product = _dot(window, kernel[i, j], total.dtype)
                around = [(0, 0), (y[0], shape[1] - y.stop), (x[0], shape[2] - x.stop), (0, 0)]
                total += jnp.pad(product, around)
    return total.astype(inputs.dtype)


def _pad(x, taps):
    """Pads by what the taps read; offset o of output i is then at i · stride + o − offsets[0]."""
    around = [(-of[0], of[-1], 0) for of in (taps.rows, taps.columns)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def _sum_of_shifts(inputs, kernel, taps):
    """A depthwise convolution as shifted maps, each times a vector: one fused loop in XLA."""
    stride = taps.stride
    height, width = (-(-size // stride) for size in inputs.shape[1:3])
    padded = _pad(inputs, taps)
    total = jnp.zeros((), jnp.promote_types(inputs.dtype, jnp.float32))
    for i, row in enumerate(taps.rows):
        for j, column in enumerate(taps.columns):
            y, x = row - taps.rows[0], column - taps.columns[0]
            shifted = padded[
                :,
                y : y + stride * (height - 1) + 1 : stride,
                x : x + stride * (width - 1) + 1 : stride,
            ]
            total = total + shifted.astype(total.dtype) * kernel[i : i + 1, j : j + 1].astype(
                total.dtype
            )
    return total.astype(inputs.dtype)


def _depthwise_kernel_gradient(inputs, kernel, gradient, taps):
    """Adds up gradient · shifted input row by row of the map.

    XLA's own reduction of a product to one value per channel does not vectorise on CPU; sums that
    keep the row's columns and channels do.
    """
    batch, height, width, channels = gradient.shape
    stride, padded = taps.stride, _pad(inputs, taps)
    dtype = jnp.promote_types(inputs.dtype, jnp.float32)

    def add_row(i, sums):
        row = lax.dynamic_slice_in_dim(gradient, i, 1, axis=1).astype(dtype)
        read = (batch, 1, stride * (width - 1) + 1, channels)
        windows = (
            lax.dynamic_slice(
                padded, (0, i * stride + y - taps.rows[0], x - taps.columns[0], 0), read
            )
            for y in taps.rows
            for x in taps.columns
        )
        return [
            total + row * window[:, :, ::stride].astype(dtype)
            for total, window in zip(sums, windows, strict=True)
        ]

    zeros = jnp.zeros((batch, 1, width, channels), dtype)
    sums = lax.fori_loop(0, height, add_row, [zeros] * (len(taps.rows) * len(taps.columns)))
    return (
        jnp.stack([total.sum((0, 1, 2)) for total in sums])
        .reshape(kernel.shape)
        .astype(kernel.dtype)
    )


def _row_stacked_kernel_gradient(inputs, kernel, gradient, taps):
    """The kernel gradient at stride 1 as one matrix product for each of the kernel's rows.

    Padded input and gradient lie on one grid of equally long rows, where a kernel row is a shift
    by whole rows, so that no window has to be copied; the gradient's column shifts are stacked on
    its channels.
    """
    height = taps.rows[-1] - taps.rows[0]
    padded = _pad(inputs, taps)
    row_length = padded.shape[2]
    shifted = jnp.concatenate(
        [
            jnp.pad(
                gradient, ((0, 0), (0, height), (x - taps.columns[0], taps.columns[-1] - x), (0, 0))
            )
            for x in taps.columns
        ],
        axis=-1,
    )
    padded, shifted = (x.reshape(-1, x.shape[-1]) for x in (padded, shifted))
    length = padded.shape[0] - height * row_length
    dtype = jnp.promote_types(inputs.dtype, jnp.float32)
    rows = []
    for y in taps.rows:
        window = padded[(y - taps.rows[0]) * row_length :][:length]
        r = lax.dot_general(
            window, shifted[:length], (((0,), (0,)), ((), ())), preferred_element_type=dtype
        )
        rows.append(r.reshape(-1, len(taps.columns), gradient.shape[-1]).swapaxes(0, 1))
    return jnp.stack(rows).astype(kernel.dtype)
