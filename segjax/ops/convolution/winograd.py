"""Winograd's form of the 3×3 convolution, F(2×2, 3×3): Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016 (arXiv:1509.09308), section 4.1.

A tile of 2×2 outputs reads 4×4 inputs d. With the kernel g it is Aᵀ [(G g Gᵀ) · (Bᵀ d B)] A. The
transforms are sums. Between them are 16 products instead of the direct form's 36; over all tiles
and channels, each is a matrix product. Positions that are an atrous rate apart are tiled together.
In float32 the result differs from the direct form's by about 1e-6 of its largest value.

`sizes` are the height and width of the output. `before` counts the rows and columns of zeros before
the input; behind it are as many as needed. So output (i, j) reads inputs (i, j) + rate · (0 … 2,
0 … 2) − before.
"""

import jax.numpy as jnp
from jax import lax

# The paper's Bᵀ for F(2, 3). Row a has two entries: input FIRST[a] + SIGN[a] · input SECOND[a].
FIRST, SECOND, SIGN = (0, 1, 2, 1), (2, 2, 1, 3), (-1, 1, -1, -1)

# The fewest input and output channels. Below this, the transforms cost what the products save.
MIN_CHANNELS = 256
# The fewest positions in all images. Below this, the kernel's transform costs what they save.
MIN_POSITIONS = 1000


def pays(batch: int, kernel_shape: tuple[int, ...], sizes: tuple[int, int], rate: int) -> bool:
    """Returns whether this form is faster than the direct one, as measured on two CPU cores.

    It is not used where the batch or the sizes are open, as `jax.export` leaves them.
    """
    if kernel_shape[:2] != (3, 3) or min(kernel_shape[2:]) < MIN_CHANNELS:
        return False
    height, width = sizes
    positions = batch * height * width
    if not isinstance(positions, int) or positions < MIN_POSITIONS:
        return False
    rows, columns = _tiles(sizes, rate)
    # Products relative to the direct form, including those that tiles compute beyond the map.
    return 16 * rows * columns * rate**2 / (9 * height * width) < 0.6


def convolve(inputs, kernel, *, sizes, before, rate: int):
    """Computes the convolution of [batch, height, width, in] with [3, 3, in, out]."""
    return _convolve(inputs, _transformed_kernel(kernel), sizes, before, rate)


def input_gradient(gradient, kernel, *, sizes, before, rate: int):
    """Computes the gradient of the input, as a convolution with the mirrored kernel.

    Args:
      gradient: the gradient of the output of `convolve`.
      sizes: height and width of the input.
      before, rate: as given to `convolve`.
    """
    # Mirroring the kernel swaps rows 0 and 3 of its transform. We transpose last: loops over all 16
    # sums with a transposed kernel take longer than the products.
    matrices = _transformed_kernel(kernel)
    mirrored = [[matrices[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]
    return _convolve(gradient, mirrored, sizes, [2 * rate - zeros for zeros in before], rate)


def _tiles(sizes, rate):
    """Returns the rows and columns of tiles in each of the rate² maps that are tiled separately."""
    return [-(-size // (2 * rate)) for size in sizes]


def _convolve(inputs, matrices, sizes, before, rate):
    points = _transformed_inputs(_blocks(inputs, sizes, before, rate))
    products = [
        [x @ matrix for x, matrix in zip(*row, strict=True)]
        for row in zip(points, matrices, strict=True)
    ]
    rows, columns = _tiles(sizes, rate)
    shape = inputs.shape[0], rows, rate, columns, rate, matrices[0][0].shape[1]
    sums = [_outputs([product.reshape(shape) for product in row]) for row in products]
    phases = [_outputs([row[column] for row in sums]) for column in range(2)]
    outputs = jnp.stack(
        [jnp.stack([phases[column][row] for column in range(2)], axis=4) for row in range(2)],
        axis=2,
    )
    outputs = outputs.reshape(shape[0], 2 * rate * rows, 2 * rate * columns, shape[-1])
    return outputs[:, : sizes[0], : sizes[1]]


def _blocks(inputs, sizes, before, rate):
    """Returns the padded input as [batch, rows + 1, 2, rate, columns + 1, 2, rate, channels].

    Along an axis, tile t of a map reads four positions: the two of block t and the two of block
    t + 1.
    """
    padding, shape = [], []
    axes = zip(inputs.shape[1:3], before, _tiles(sizes, rate), strict=True)
    for size, zeros, tiles in axes:
        padding.append((zeros, 2 * rate * (tiles + 1) - size - zeros))
        shape += [tiles + 1, 2, rate]
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    return padded.reshape(inputs.shape[0], *shape, inputs.shape[3])


def _transformed_inputs(blocks):
    """Computes Bᵀ d B as a list of lists of [tiles, channels]."""
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
    """Computes G g Gᵀ as a list of lists of [in, out]."""

    def transformed(g):
        outer = 0.5 * (g[0] + g[2])
        return g[0], outer + 0.5 * g[1], outer - 0.5 * g[1], g[2]

    return [transformed([row[j] for j in range(3)]) for row in transformed(list(kernel))]


def _outputs(m):
    """Applies Aᵀ along one axis: two outputs from four products."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
