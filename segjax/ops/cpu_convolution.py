"""The forms of a convolution that are fastest on CPU, and what all forms share.

XLA's own forward pass is fast there (YNNPACK), but Winograd's form of many channels is faster. Its
kernel gradient, its depthwise convolution and its handling of taps that meet only padding are slow.
experiments/benchmarks has the measurements.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops import direct_convolution, winograd

# Of input and gradient that a step of the kernel gradient reads: what stays in a core's cache.
BLOCK_POSITIONS = 2048


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


def _mostly_outside(inputs, taps):
    """Whether over a fifth of all (output position, tap) pairs read padding: it pays to skip it."""
    if not taps.padded:
        return False
    share_inside = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        inside = [len(outputs_inside(offset, size, taps.stride)) for offset in offsets]
        share_inside *= sum(inside) / (len(inside) * -(-size // taps.stride))
    return share_inside < 0.8


def _sum_dtype(inputs):
    return jnp.float64 if inputs.dtype == jnp.float64 else jnp.float32


def dot(x, matrix, dtype=None):
    """The product over the last axis of x and the first of the matrix, summed in a dtype."""
    # Of two axes: the gradient of a product of more is computed from transposed copies on CPU.
    product = jnp.matmul(_positions(x), matrix, preferred_element_type=dtype)
    return product.reshape(*x.shape[:-1], matrix.shape[-1])


def _pad(x, taps):
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


def forward(inputs, kernel, taps):
    """Computes the convolution in the form that is fastest on CPU."""
    if taps.groups > 1:
        return _sum_of_shifts(inputs, kernel, taps)
    if _mostly_outside(inputs, taps):
        return _sum_of_products(inputs, kernel, taps)
    if window := _winograd_window(inputs, kernel, taps, winograd.MIN_CHANNELS):
        return winograd.convolve(inputs, kernel, window)
    return direct_convolution.convolve(inputs, kernel, taps.padding, taps.rate)


def gradients(inputs, kernel, gradient, taps):
    """Computes the gradients of inputs and kernel from that of the output, as `forward` does."""
    input_gradient = _input_gradient(inputs, kernel, gradient, taps)
    kernel_gradient = _kernel_gradient(inputs, kernel, gradient, taps)
    return input_gradient, kernel_gradient.astype(kernel.dtype)


def _input_gradient(inputs, kernel, gradient, taps):
    if taps.groups > 1:
        pull_back = jax.vjp(lambda x: _sum_of_shifts(x, kernel, taps), inputs)[1]
        return pull_back(gradient)[0]
    if _mostly_outside(inputs, taps):
        rows, columns = (tuple(-offset for offset in of) for of in (taps.rows, taps.columns))
        mirrored = taps._replace(rows=rows, columns=columns)
        return _sum_of_products(gradient, kernel.swapaxes(2, 3), mirrored)
    if _kernel_outweighs(gradient, kernel):
        return _columns_input_gradient(inputs, kernel, gradient, taps)
    if window := _winograd_window(inputs, kernel, taps, winograd.MIN_CHANNELS):
        return winograd.input_gradient(gradient, kernel, window, inputs.shape[1:3])
    return _direct_input_gradient(inputs, kernel, gradient, taps)


def _direct_input_gradient(inputs, kernel, gradient, taps):
    """The convolution of the output's gradient with the mirrored kernel."""
    padding = []
    for axis, (before, _) in enumerate(taps.padding):
        span = taps.rate * (kernel.shape[axis] - 1)
        first = span - before
        behind = inputs.shape[axis + 1] - gradient.shape[axis + 1] + span - first
        padding.append((first, behind))
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    return direct_convolution.convolve(gradient, mirrored, padding, taps.rate)


def _kernel_gradient(inputs, kernel, gradient, taps):
    if taps.groups > 1:
        return _shifts_kernel_gradient(inputs, gradient, taps)
    if _mostly_outside(inputs, taps):
        return _products_kernel_gradient(inputs, gradient, taps)
    if _kernel_outweighs(gradient, kernel):
        return _columns_kernel_gradient(inputs, gradient, taps)
    if window := _winograd_window(inputs, kernel, taps, winograd.MIN_CHANNELS_OF_KERNEL_GRADIENT):
        return winograd.kernel_gradient(inputs, gradient, window)
    return _blocked_kernel_gradient(inputs, gradient, taps)


def _winograd_window(inputs, kernel, taps, min_channels):
    """The outputs as `winograd` describes them; None where its form is not the fastest."""
    if inputs.dtype not in (jnp.float32, jnp.float64):
        return None
    height, width = inputs.shape[1:3]
    if not taps.padded:
        height, width = height - taps.rows[-1], width - taps.columns[-1]
    (top, _), (left, _) = taps.padding
    window = winograd.Window((height, width), (top, left), taps.rate)
    pays = winograd.pays(inputs.shape[0], kernel.shape, window, min_channels)
    return window if pays else None


def _windows(sizes, taps):
    """What each tap that touches the map reads of it, and the equally large part it adds to."""
    for (i, row), (j, column) in itertools.product(enumerate(taps.rows), enumerate(taps.columns)):
        y, x = outputs_inside(row, sizes[0], 1), outputs_inside(column, sizes[1], 1)
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
        total = total.at[write].add(dot(inputs[read], kernel[tap], total.dtype))
    return total.astype(inputs.dtype)


def _products_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient of `_sum_of_products`."""
    shape = len(taps.rows), len(taps.columns), inputs.shape[3], gradient.shape[3]
    total = jnp.zeros(shape, _sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        window, part = (x.reshape(-1, x.shape[-1]) for x in (inputs[read], gradient[write]))
        total = total.at[tap].set(dot(window.T, part, total.dtype))
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


def _kernel_outweighs(gradient, kernel):
    """Whether the map is so small that copies of the kernel would take the longest."""
    positions = gradient.shape[0] * gradient.shape[1] * gradient.shape[2]
    return min(kernel.shape[2:]) >= winograd.MIN_CHANNELS and positions < winograd.MIN_POSITIONS


def _columns_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient at stride 1, in the kernel's own layout: all taps in one product."""
    height, width = gradient.shape[1:3]
    padded, top, left = _pad(inputs, taps), taps.rows[0], taps.columns[0]
    columns = jnp.concatenate(
        [
            padded[:, y - top : y - top + height, x - left : x - left + width]
            for y, x in itertools.product(taps.rows, taps.columns)
        ],
        axis=-1,
    )
    product = dot(_positions(columns).T, _positions(gradient), _sum_dtype(inputs))
    shape = len(taps.rows), len(taps.columns), inputs.shape[3], gradient.shape[3]
    return product.reshape(shape)


def _columns_input_gradient(inputs, kernel, gradient, taps):
    """The input's gradient at stride 1: products with all taps, whose shifts are then added.

    XLA's convolution would transpose the kernel first, for longer than the products take.
    """
    (height, width), sizes = gradient.shape[1:3], inputs.shape[1:3]
    rows, columns, channels, features = kernel.shape
    products = lax.dot_general(
        _positions(gradient),
        kernel.reshape(-1, features),
        (((1,), (1,)), ((), ())),
        preferred_element_type=_sum_dtype(inputs),
    ).reshape(-1, height, width, rows, columns, channels)
    around = [
        (offsets[-1], size - of_output - offsets[0], 0)
        for offsets, size, of_output in zip(
            (taps.rows, taps.columns), sizes, (height, width), strict=True
        )
    ]
    zero = jnp.zeros((), products.dtype)
    products = lax.pad(products, zero, [(0, 0, 0), *around, *[(0, 0, 0)] * 3])
    total = 0
    for (i, row), (j, column) in itertools.product(enumerate(taps.rows), enumerate(taps.columns)):
        y, x = taps.rows[-1] - row, taps.columns[-1] - column
        total += products[:, y : y + sizes[0], x : x + sizes[1], i, j]
    return total.astype(inputs.dtype)


def _blocked_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient at stride 1: blocks of rows at a time, which stay in the cache.

    A block of the padded input and of the gradient lie on one grid, where a kernel row is a shift
    by whole rows, so that no window of the input is copied; the columns' shifts of the gradient
    stand side by side. So each of the kernel's rows is one matrix product.
    """
    batch, height, width, _ = gradient.shape
    top, left = taps.rows[0], taps.columns[0]
    rows = -(-height // min(height, -(-batch * height * width // BLOCK_POSITIONS)))
    blocks = -(-height // rows)  # as equal as can be
    missing = blocks * rows - height
    padded, gradient = (
        jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (_pad(inputs, taps), gradient)
    )

    def add_block(block, sums):
        part = lax.dynamic_slice_in_dim(gradient, block * rows, rows, 1)
        shifted = [
            jnp.pad(part, ((0, 0), (0, 0), (x - left, taps.columns[-1] - x), (0, 0)))
            for x in taps.columns
        ]
        shifted = _positions(jnp.concatenate(shifted, axis=-1))
        windows = (
            lax.dynamic_slice_in_dim(padded, block * rows + y - top, rows, 1) for y in taps.rows
        )
        products = [dot(_positions(window).T, shifted, sums.dtype) for window in windows]
        return sums + jnp.stack(products)

    shape = len(taps.rows), inputs.shape[3], len(taps.columns), gradient.shape[3]
    sums = jnp.zeros((*shape[:2], shape[2] * shape[3]), _sum_dtype(inputs))
    sums = add_block(0, sums) if blocks == 1 else lax.fori_loop(0, blocks, add_block, sums)
    return sums.reshape(shape).swapaxes(1, 2)


def _positions(x):
    """All positions of a map in one row: [batch · height · width, channels]."""
    return x.reshape(-1, x.shape[-1])
