"""The forms of a convolution that are fastest on CPU.

XLA's own forward pass is fast there in some shapes (`direct_convolution`), but
Winograd's form of many channels is faster. Its kernel gradient, its depthwise convolution and its
handling of taps that meet only padding are slow. experiments/benchmarks has the measurements.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution import direct_convolution, winograd
from segjax.ops.convolution.taps import dot, output_sizes, outputs_inside, pad, positions
from segjax.ops.dtypes import sum_dtype

# Of input and gradient that a step of the kernel gradient reads: what stays in a core's cache.
BLOCK_POSITIONS = 2048


def _mostly_outside(inputs, taps):
    """Whether over a fifth of all (output position, tap) pairs read padding: it pays to skip it."""
    if not taps.padded:
        return False
    share_inside = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        inside = [len(outputs_inside(offset, size, taps.stride)) for offset in offsets]
        share_inside *= sum(inside) / (len(inside) * -(-size // taps.stride))
    return share_inside < 0.8


def forward(inputs, kernel, taps):
    """Computes the convolution in the form that is fastest on CPU."""
    if taps.groups > 1:
        return _sum_of_shifts(inputs, kernel, taps)
    if _mostly_outside(inputs, taps):
        return _sum_of_products(inputs, kernel, taps)
    if _kernel_outweighs(inputs, kernel, taps):
        return _columns_convolution(inputs, kernel, taps)
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
    if _kernel_outweighs(inputs, kernel, taps):
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
    if _kernel_outweighs(inputs, kernel, taps):
        return _columns_kernel_gradient(inputs, gradient, taps)
    if window := _winograd_window(inputs, kernel, taps, winograd.MIN_CHANNELS_OF_KERNEL_GRADIENT):
        return winograd.kernel_gradient(inputs, gradient, window)
    return _blocked_kernel_gradient(inputs, gradient, taps)


def _winograd_window(inputs, kernel, taps, min_channels):
    """The outputs as `winograd` describes them; None where its form is not the fastest."""
    if inputs.dtype not in (jnp.float32, jnp.float64):
        return None
    (height, width), ((top, _), (left, _)) = output_sizes(inputs, taps), taps.padding
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
    total = jnp.zeros((*inputs.shape[:3], kernel.shape[3]), sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        total = total.at[write].add(dot(inputs[read], kernel[tap], total.dtype))
    return total.astype(inputs.dtype)


def _products_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient of `_sum_of_products`."""
    shape = len(taps.rows), len(taps.columns), inputs.shape[3], gradient.shape[3]
    total = jnp.zeros(shape, sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        window, part = (x.reshape(-1, x.shape[-1]) for x in (inputs[read], gradient[write]))
        total = total.at[tap].set(dot(window.T, part, total.dtype))
    return total


def _sum_of_shifts(inputs, kernel, taps):
    """A depthwise convolution as the sum of shifted maps times vectors: one fused loop in XLA."""
    stride, dtype = taps.stride, sum_dtype(inputs)
    height, width = (-(-size // stride) for size in inputs.shape[1:3])
    padded = pad(inputs, taps)
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
    stride, rate, dtype = taps.stride, taps.rate, sum_dtype(inputs)
    shape = len(taps.rows), len(taps.columns), 1, channels
    number, padded = shape[0] * shape[1], pad(inputs, taps)
    read = (batch, 1, stride * (width - 1) + 1, channels)

    def add_row(i, sums):  # one loop over rows and taps compiles faster than taps written out
        row, tap = i // number, i % number
        top, left = tap // shape[1] * rate, tap % shape[1] * rate
        window = lax.dynamic_slice(padded, (0, row * stride + top, left, 0), read)[:, :, ::stride]
        product = lax.dynamic_slice_in_dim(gradient, row, 1, 1).astype(dtype) * window.astype(dtype)
        return sums.at[tap].add(product)

    sums = jnp.zeros((number, batch, 1, width, channels), dtype)
    return lax.fori_loop(0, height * number, add_row, sums).sum((1, 2, 3)).reshape(shape)


def _kernel_outweighs(inputs, kernel, taps):
    """Whether the map is so small that copies of the kernel would take the longest."""
    height, width = output_sizes(inputs, taps)
    is_small = inputs.shape[0] * height * width < winograd.MIN_POSITIONS
    return is_small and min(kernel.shape[2:]) >= winograd.MIN_CHANNELS


def _columns(inputs, taps):
    """At stride 1, what all taps of each output position read: [positions, taps · in]."""
    height, width = output_sizes(inputs, taps)
    padded, top, left = pad(inputs, taps), taps.rows[0], taps.columns[0]
    read = [
        padded[:, y - top : y - top + height, x - left : x - left + width]
        for y, x in itertools.product(taps.rows, taps.columns)
    ]
    return positions(jnp.concatenate(read, axis=-1))


def _columns_convolution(inputs, kernel, taps):
    """One product with all taps."""
    product = dot(_columns(inputs, taps), kernel.reshape(-1, kernel.shape[3]))
    return product.reshape(inputs.shape[0], *output_sizes(inputs, taps), -1)


def _columns_kernel_gradient(inputs, gradient, taps):
    """The kernel's gradient of `_columns_convolution`, in the kernel's own layout."""
    product = dot(_columns(inputs, taps).T, positions(gradient), sum_dtype(inputs))
    shape = len(taps.rows), len(taps.columns), inputs.shape[3], gradient.shape[3]
    return product.reshape(shape)


def _columns_input_gradient(inputs, kernel, gradient, taps):
    """The input's gradient at stride 1: products with all taps, whose shifts are then added.

    XLA's convolution would transpose the kernel first, for longer than the products take.
    """
    (height, width), sizes = gradient.shape[1:3], inputs.shape[1:3]
    rows, columns, channels, features = kernel.shape
    products = lax.dot_general(
        positions(gradient),
        kernel.reshape(-1, features),
        (((1,), (1,)), ((), ())),
        preferred_element_type=sum_dtype(inputs),
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
        jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (pad(inputs, taps), gradient)
    )

    def add_block(block, sums):
        part = lax.dynamic_slice_in_dim(gradient, block * rows, rows, 1)
        shifted = [
            jnp.pad(part, ((0, 0), (0, 0), (x - left, taps.columns[-1] - x), (0, 0)))
            for x in taps.columns
        ]
        shifted = positions(jnp.concatenate(shifted, axis=-1))
        windows = (
            lax.dynamic_slice_in_dim(padded, block * rows + y - top, rows, 1) for y in taps.rows
        )
        products = [dot(positions(window).T, shifted, sums.dtype) for window in windows]
        return sums + jnp.stack(products)

    shape = len(taps.rows), inputs.shape[3], len(taps.columns), gradient.shape[3]
    sums = jnp.zeros((*shape[:2], shape[2] * shape[3]), sum_dtype(inputs))
    sums = add_block(0, sums) if blocks == 1 else lax.fori_loop(0, blocks, add_block, sums)
    return sums.reshape(shape).swapaxes(1, 2)
