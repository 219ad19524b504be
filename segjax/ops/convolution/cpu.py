"""The forms of a convolution that are fastest on CPU, with where and why each is used.

| form | where | why |
|---|---|---|
| `product` | 1×1 | one product of two matrices |
| `sum_of_shifts` | depthwise | XLA's own runs one channel at a time |
| `sum_of_products` | most taps read padding | skips products with zeros: ASPP at rate 18 |
| `winograd` | 3×3, 256 channels and more, large maps or many | 16 products instead of 36 |
| `blocked_kernel_gradient` | other kernel gradients | XLA's own is memory bound |
| XLA's convolution | everything else | it is the fastest there |
| XLA's convolution | devices share the rows | other forms would gather whole maps |

The section "Convolution forms on CPU" of experiments/benchmarks/RESULTS.md has what each form saves
on whole train steps and predictions (jax 0.12.0.1, two cores).
"""

import functools
import itertools

import jax.numpy as jnp
from jax import lax

from segjax.ops.convolution import winograd
from segjax.ops.convolution.taps import (
    dot,
    output_sizes,
    outputs_inside,
    pad,
    plain,
    plain_input_gradient,
    plain_kernel_gradient,
    positions,
    product,
    product_input_gradient,
    product_kernel_gradient,
)
from segjax.ops.dtypes import sum_dtype
from segjax.ops.linear import transposed

# The positions of input and gradient that a step of the kernel gradient reads fit a core's cache.
BLOCK_POSITIONS = 2048


def mostly_outside(inputs, taps):
    """Returns whether over a fifth of all (output, tap) pairs read padding; then skipping pays."""
    if not taps.padded:
        return False
    share_inside = 1.0
    for offsets, size in zip((taps.rows, taps.columns), inputs.shape[1:3], strict=True):
        inside = [len(outputs_inside(offset, size, taps.stride)) for offset in offsets]
        share_inside *= sum(inside) / (len(inside) * -(-size // taps.stride))
    return share_inside < 0.8


def forward(inputs, kernel, taps):
    """Computes the convolution in the form that is fastest on CPU."""
    if taps.shared:
        return plain(inputs, kernel, taps)
    if taps.is_point:
        return product(inputs, kernel, taps)
    if taps.groups > 1:
        return sum_of_shifts(inputs, kernel, taps)
    if mostly_outside(inputs, taps):
        return sum_of_products(inputs, kernel, taps)
    if winograd_pays(inputs, kernel, taps):
        sizes, before = output_sizes(inputs, taps), [zeros for zeros, _ in taps.padding]
        return winograd.convolve(inputs, kernel, sizes=sizes, before=before, rate=taps.rate)
    return plain(inputs, kernel, taps)


def input_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the inputs; only the inputs' shape and dtype are read."""
    if taps.shared:
        return plain_input_gradient(inputs, kernel, gradient, taps)
    if taps.is_point:
        return product_input_gradient(inputs, kernel, gradient, taps)
    if taps.groups > 1:
        shifts = functools.partial(sum_of_shifts, kernel=kernel, taps=taps)
        return transposed(shifts, inputs, gradient)
    if mostly_outside(inputs, taps):
        rows, columns = (tuple(-offset for offset in of) for of in (taps.rows, taps.columns))
        negative = taps._replace(rows=rows, columns=columns)
        return sum_of_products(gradient, kernel.swapaxes(2, 3), negative)
    if winograd_pays(inputs, kernel, taps):
        sizes, before = inputs.shape[1:3], [zeros for zeros, _ in taps.padding]
        return winograd.input_gradient(gradient, kernel, sizes=sizes, before=before, rate=taps.rate)
    return plain_input_gradient(inputs, kernel, gradient, taps)


def kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the gradient of the kernel; only the kernel's shape and dtype are read."""
    if taps.shared:
        return plain_kernel_gradient(inputs, kernel, gradient, taps)
    if taps.is_point:
        return product_kernel_gradient(inputs, kernel, gradient, taps)
    if taps.groups > 1:
        total = shifts_kernel_gradient(inputs, kernel, gradient, taps)
    elif mostly_outside(inputs, taps):
        total = products_kernel_gradient(inputs, kernel, gradient, taps)
    else:
        total = blocked_kernel_gradient(inputs, kernel, gradient, taps)
    return total.astype(kernel.dtype)


def winograd_pays(inputs, kernel, taps):
    is_float = inputs.dtype in (jnp.float32, jnp.float64)
    sizes = output_sizes(inputs, taps)
    return is_float and winograd.pays(inputs.shape[0], kernel.shape, sizes, taps.rate)


def _windows(sizes, taps):
    """Yields each tap that touches the map, the part it reads, and the outputs it adds to."""
    for (i, row), (j, column) in itertools.product(enumerate(taps.rows), enumerate(taps.columns)):
        y, x = outputs_inside(row, sizes[0], 1), outputs_inside(column, sizes[1], 1)
        if y and x:
            read = slice(y.start + row, y.stop + row), slice(x.start + column, x.stop + column)
            write = slice(y.start, y.stop), slice(x.start, x.stop)
            yield (i, j), (slice(None), *read), (slice(None), *write)


def sum_of_products(inputs, kernel, taps):
    """Adds each tap's product with the part of the map that it meets, at stride 1, without padding.

    At rate 18 on 33×33, this takes 40 % of the plain form's arithmetic. The parts are added in
    place. XLA would fuse padded parts into every reader of the sum, and recompute them there.
    """
    total = jnp.zeros((*inputs.shape[:3], kernel.shape[3]), sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        total = total.at[write].add(dot(inputs[read], kernel[tap], total.dtype))
    return total.astype(inputs.dtype)


def products_kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the kernel gradient of `sum_of_products`."""
    total = jnp.zeros(kernel.shape, sum_dtype(inputs))
    for tap, read, write in _windows(inputs.shape[1:3], taps):
        window, part = (x.reshape(-1, x.shape[-1]) for x in (inputs[read], gradient[write]))
        total = total.at[tap].set(dot(window.T, part, total.dtype))
    return total


def sum_of_shifts(inputs, kernel, taps):
    """Computes a depthwise convolution as a sum of shifted maps times vectors, which XLA fuses."""
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


def shifts_kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the kernel gradient of `sum_of_shifts`.

    The products of gradient and shifted input are summed over the map's rows first, and over the
    columns last. On CPU, XLA vectorises these sums, but not a reduction to one value per channel.
    """
    batch, height, width, channels = gradient.shape
    stride, rate, dtype = taps.stride, taps.rate, sum_dtype(inputs)
    number, padded = kernel.shape[0] * kernel.shape[1], pad(inputs, taps)
    read = (batch, 1, stride * (width - 1) + 1, channels)

    def add_row(i, sums):  # one loop over rows and taps compiles faster than unrolled taps
        row, tap = i // number, i % number
        top, left = tap // kernel.shape[1] * rate, tap % kernel.shape[1] * rate
        window = lax.dynamic_slice(padded, (0, row * stride + top, left, 0), read)[:, :, ::stride]
        product = lax.dynamic_slice_in_dim(gradient, row, 1, 1).astype(dtype) * window.astype(dtype)
        return sums.at[tap].add(product)

    sums = jnp.zeros((number, batch, 1, width, channels), dtype)
    return lax.fori_loop(0, height * number, add_row, sums).sum((1, 2, 3)).reshape(kernel.shape)


def blocked_kernel_gradient(inputs, kernel, gradient, taps):
    """Computes the kernel gradient at stride 1, in blocks of rows that fit the cache.

    The padded input and the gradient are on one grid. A row of the kernel is a shift by whole rows
    of this grid, so no window of the input is copied. The gradient's column shifts are joined, so
    each row of the kernel is one matrix product.
    """
    batch, height, width, _ = gradient.shape
    top, left = taps.rows[0], taps.columns[0]
    rows = -(-height // min(height, -(-batch * height * width // BLOCK_POSITIONS)))
    blocks = -(-height // rows)
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

    shape = len(taps.rows), inputs.shape[3], len(taps.columns), kernel.shape[3]
    sums = jnp.zeros((*shape[:2], shape[2] * shape[3]), sum_dtype(inputs))
    sums = add_block(0, sums) if blocks == 1 else lax.fori_loop(0, blocks, add_block, sums)
    return sums.reshape(shape).swapaxes(1, 2)
