"""Winograd's form of the 3×3 convolution, F(2×2, 3×3): Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308), section 4.1.

A tile of 2×2 outputs reads 4×4 inputs d; with the kernel g it is Aᵀ [(G g Gᵀ) · (Bᵀ d B)] A. The
transforms are sums. Between them are 16 products where the direct form has 36; over all tiles and
channels each is a product of matrices. Positions that lie an atrous rate apart are tiled together.
In float32 the result differs from the direct form's by some 1e-6 of its largest value.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

# A and G of the paper's F(2, 3).
A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]], np.float32)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
# Its Bᵀ, of which each row has two entries: input FIRST[a] + SIGN[a] · input SECOND[a].
FIRST, SECOND, SIGN = (0, 1, 2, 1), (2, 2, 1, 3), (-1, 1, -1, -1)

# Of input and output: with fewer, the transforms take what the products save, and this form longer
# to compile; the kernel's gradient, a loop, is compiled fast.
MIN_CHANNELS = 256
MIN_CHANNELS_OF_KERNEL_GRADIENT = 128
MIN_POSITIONS = 300  # of all images: with fewer, the kernel's own transform takes that


class Window(NamedTuple):
    """Where outputs lie: (i, j) reads inputs (i, j) + rate · (0 … 2, 0 … 2) − before.

    Attributes:
      sizes: height and width of the output.
      before: rows and columns of zeros before the input; as many as needed lie behind it.
      rate: atrous rate.
    """

    sizes: tuple[int, int]
    before: tuple[int, int]
    rate: int

    @property
    def tiles(self) -> tuple[int, int]:
        """In rows and columns, of each of the rate² maps that are tiled by themselves."""
        rows, columns = (-(-size // (2 * self.rate)) for size in self.sizes)
        return rows, columns


def pays(batch: int, kernel_shape: tuple[int, ...], window: Window, min_channels: int) -> bool:
    """Whether this form is the faster one on CPU, from measurements on two cores."""
    (height, width), (rows, columns) = window.sizes, window.tiles
    # Of the direct form's, with what tiles compute beyond the map.
    share_of_products = 16 * rows * columns * window.rate**2 / (9 * height * width)
    return (
        kernel_shape[:2] == (3, 3)
        and min(kernel_shape[2:]) >= min_channels
        and batch * height * width >= MIN_POSITIONS
        and share_of_products < 0.6
    )


def convolve(inputs, kernel, window: Window):
    """Computes the convolution of [batch, height, width, in] with [3, 3, in, out]."""
    return _convolve(inputs, _transformed_kernel(kernel), window)


def input_gradient(gradient, kernel, window: Window, sizes: tuple[int, int]):
    """Computes the gradient of an input of these sizes: a convolution with the mirrored kernel."""
    # What is mirrored before G has rows 0 and 3 exchanged after it. It is transposed last: loops
    # over all 16 sums with a transposed kernel take longer than the products.
    matrices = _transformed_kernel(kernel)
    mirrored = [[matrices[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    before = tuple(2 * window.rate - zeros for zeros in window.before)
    return _convolve(gradient, mirrored, Window(sizes, before, window.rate))


def _convolve(inputs, matrices, window):
    points = _transformed_inputs(_blocks(inputs, window))
    products = [
        [x @ matrix for x, matrix in zip(*row, strict=True)]
        for row in zip(points, matrices, strict=True)
    ]
    (rows, columns), rate = window.tiles, window.rate
    shape = inputs.shape[0], rows, rate, columns, rate, matrices[0][0].shape[1]
    sums = [_outputs([product.reshape(shape) for product in row]) for row in products]
    phases = [_outputs([row[column] for row in sums]) for column in range(2)]
    outputs = jnp.stack(
        [jnp.stack([phases[column][row] for column in range(2)], axis=4) for row in range(2)],
        axis=2,
    )
    outputs = outputs.reshape(shape[0], 2 * rate * rows, 2 * rate * columns, shape[-1])
    return outputs[:, : window.sizes[0], : window.sizes[1]]


def kernel_gradient(inputs, gradient, window: Window):
    """Computes the kernel's gradient from that of the output, [batch, *window.sizes, out].

    One of the 16 points at a time: it is read and transformed while it is in the cache, and what
    all share is compiled once.
    """
    blocks = _blocks(inputs, window)
    (rows, columns), rate = window.tiles, window.rate
    behind = (
        (0, 2 * rate * tiles - size)
        for tiles, size in zip((rows, columns), window.sizes, strict=True)
    )
    batch, *_, channels, features = *inputs.shape, gradient.shape[3]
    gradient = jnp.pad(gradient, ((0, 0), *behind, (0, 0)))
    gradient = gradient.reshape(batch, rows, 2, rate, columns, 2, rate, features)
    first, second = jnp.asarray(FIRST), jnp.asarray(SECOND)
    sign, coefficients = (jnp.asarray(table, inputs.dtype) for table in (SIGN, A))

    def read(row, column):
        start = (0, row // 2, row % 2, 0, column // 2, column % 2, 0, 0)
        shape = batch, rows, 1, rate, columns, 1, rate, channels
        return lax.dynamic_slice(blocks, start, shape).reshape(-1, channels)

    def add_point(point, sums):
        row, column = point // 4, point % 4
        upper, lower = (
            read(i, first[column]) + sign[column] * read(i, second[column])
            for i in (first[row], second[row])
        )
        spread = sum(
            coefficients[row, i] * coefficients[column, j] * gradient[:, :, i, :, :, j]
            for i in range(2)
            for j in range(2)
        )
        product = (upper + sign[row] * lower).T @ spread.reshape(-1, features)
        return lax.dynamic_update_index_in_dim(sums, product, point, 0)

    sums = jnp.zeros((16, channels, features), inputs.dtype)
    sums = lax.fori_loop(0, 16, add_point, sums)
    back = jnp.asarray(np.kron(G, G).T, inputs.dtype)  # Gᵀ · G of rows and columns at once
    return (back @ sums.reshape(16, -1)).reshape(3, 3, channels, features)


def _blocks(inputs, window):
    """The padded input as [batch, rows + 1, 2, rate, columns + 1, 2, rate, channels].

    Along an axis, tile t of a map reads four of its positions: both of block t and of block t + 1.
    """
    padding, shape = [], []
    sizes = zip(inputs.shape[1:3], window.before, window.tiles, strict=True)
    for size, before, tiles in sizes:
        padding.append((before, 2 * window.rate * (tiles + 1) - size - before))
        shape += [tiles + 1, 2, window.rate]
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    return padded.reshape(inputs.shape[0], *shape, inputs.shape[3])


def _transformed_inputs(blocks):
    """Bᵀ d B: a list of lists of [tiles, channels]."""
    channels = blocks.shape[-1]
    rows = _transformed_axis(blocks, 1)
    return [[x.reshape(-1, channels) for x in _transformed_axis(row, 3)] for row in rows]


def _transformed_axis(blocks, axis):
    tiles = blocks.shape[axis] - 1
    d = [
        lax.index_in_dim(lax.slice_in_dim(blocks, t, t + tiles, axis=axis), i, axis + 1, False)
        for t in range(2)
        for i in range(2)
    ]
    return [d[i] + sign * d[j] for i, j, sign in zip(FIRST, SECOND, SIGN, strict=True)]


def _transformed_kernel(kernel):
    """G g Gᵀ: a list of lists of [in, out]."""

    def transformed(g):
        outer = 0.5 * (g[0] + g[2])
        return g[0], outer + 0.5 * g[1], outer - 0.5 * g[1], g[2]

    return [transformed([row[j] for j in range(3)]) for row in transformed(list(kernel))]


def _outputs(m):
    """Aᵀ along one axis: two outputs of four products."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
