"""Resizing of feature maps: bilinearly, with corners aligned or not, and to twice the size."""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.devices import can_share, row_shares, rows_are_shared, share_rows
from segjax.ops.linear import apply, define_transposes, linear_operator, transposed


def resize_bilinear(x, size: tuple[int, int], *, align_corners: bool):
    """Resizes maps bilinearly, without antialiasing, in at least float32.

    With `align_corners`, the centres of the corner pixels stay in place, as in TensorFlow's DeepLab
    and Caffe's Interp layer: 33 → 513 puts input pixel i on output pixel 16·i. Without it, pixels
    are squares and the outer edges stay in place, as in PyTorch by default.

    Args:
      x: [batch, height, width, channels] of a float dtype.
      size: height and width of the result.

    Returns:
      [batch, *size, channels] of the same dtype.
    """
    chex.assert_rank(x, 4, custom_message="x")
    chex.assert_type(x, float, custom_message="x")
    chex.assert_equal(len(size), 2, custom_message="size")
    batch, height, width, channels = x.shape
    x = share_rows(x)
    resized = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    # We multiply by matrices. A gather alone is faster, but XLA fuses it into every reader of the
    # result and recomputes it there. Its gradient is a scatter, which GPUs add in no fixed order.
    # The columns are resized first, while there are few rows; the rows then need no transposition.
    if width != size[1]:
        options = width, size[1], align_corners
        if all(isinstance(side, int) for side in (*x.shape, size[1])):
            resized = apply(_columns, resized, options=options)
        else:  # symbolic sizes of `jax.export`
            resized = _resized_columns(resized, options=options)
    if height != size[0] and (halo := _halo(height, size[0], align_corners)) is not None:
        resized = _resized_shares(resized, size[0], align_corners, halo)
    elif height != size[0]:
        weights = _interpolation_matrix(height, size[0], align_corners, resized.dtype)
        weights = jnp.broadcast_to(weights[None], (batch, *weights.shape))
        rows = resized.reshape(batch, height, size[1] * channels)
        rows = _product(weights, rows, (((2,), (1,)), ((0,), (0,))))
        resized = rows.reshape(batch, *size, channels)
    return share_rows(resized).astype(x.dtype)


def _halo(height, new, align_corners) -> tuple[int, int] | None:
    """Returns the numbers of rows that a device needs of the one before and of the one after it.

    None: the rows are not shared, or a device needs rows of more than its two neighbours.
    """
    shares = row_shares()
    if shares == 1 or not can_share(min(height, new)):
        return None
    own, made = -(-height // shares), -(-new // shares)
    before = after = 0
    for share in range(shares):
        ends = [min(i, new - 1) for i in (share * made, share * made + made - 1)]
        positions = (_position(i, height, new, align_corners, np) for i in ends)
        low, high = (int(dividend // divisor) for dividend, divisor in positions)
        before = max(before, share * own - low)
        after = max(after, min(high + 1, height - 1) - (share + 1) * own + 1)
    return (before, after) if max(before, after) <= own else None


def _resized_shares(x, new, align_corners, halo):
    """Resizes the rows of [batch, height, width, channels] by a product for each device's share.

    One product for all rows would gather the map, and its transpose the gradient of the result.
    """
    batch, height, width, channels = x.shape
    shares, (before, after) = row_shares(), halo
    own, made = -(-height // shares), -(-new // shares)
    x = jnp.pad(x, ((0, 0), (0, shares * own - height), (0, 0), (0, 0)))
    x = x.reshape(batch, shares, own, width * channels)
    ends = x[:, :-1, own - before :], x[:, 1:, :after]
    past, coming = (
        jnp.pad(end, ((0, 0), around, (0, 0), (0, 0)))
        for end, around in zip(ends, ((1, 0), (0, 1)), strict=True)
    )
    seen = jnp.concatenate([past, x, coming], axis=2)
    i = jnp.minimum(jnp.arange(shares * made), new - 1).reshape(shares, made, 1)
    j = own * jnp.arange(shares)[:, None, None] + jnp.arange(-before, own + after)[None, None]
    weights = _weights(i, j, height, new, align_corners, x.dtype)
    rows = _product(weights, seen, (((2,), (2,)), ((0,), (1,))))  # [shares, made, batch, ...]
    rows = rows.transpose(2, 0, 1, 3).reshape(batch, shares * made, width, channels)
    return rows[:, :new]


def _resized_columns(x, *, options):
    """Multiplies [batch, height, width, channels] and the weights, for the options of `_columns`:
    width, new width, and whether corners are aligned.
    """
    width, new, align_corners = options
    weights = _interpolation_matrix(width, new, align_corners, x.dtype)
    return _product(x, weights, (((2,), (1,)), ((), ()))).swapaxes(2, 3)


def _columns_by_row(x, *, options, contracted=2):
    """Multiplies the weights with each row's columns. The product needs no transposition, nor does
    its transpose, which sums over the weights' axis 1 instead of 2.

    XLA:GPU fuses a product with the transposition of its operand. Where the merged sides are odd,
    it finds no tiles for the fusion and refuses the program: "Couldn't find output tile sizes"
    (openxla/xla#36792; jax 0.10.2, two classes or ResNet-101's whole step).
    """
    batch, height = x.shape[:2]
    width, new, align_corners = options
    weights = _interpolation_matrix(width, new, align_corners, x.dtype)
    if rows_are_shared():  # merging the rows with the batch would gather them
        weights = jnp.broadcast_to(weights[None, None], (batch, height, *weights.shape))
        return _product(weights, x, (((contracted + 1,), (2,)), ((0, 1), (0, 1))))
    weights = jnp.broadcast_to(weights[None], (batch * height, *weights.shape))
    rows = x.reshape(batch * height, *x.shape[2:])
    columns = _product(weights, rows, (((contracted,), (1,)), ((0,), (0,))))
    return columns.reshape(batch, height, *columns.shape[1:])


def _resized_columns_gradient(gradient, *, options):
    batch, height, _, channels = gradient.shape
    x = jax.ShapeDtypeStruct((batch, height, options[0], channels), gradient.dtype)
    return transposed(functools.partial(_resized_columns, options=options), x, gradient)


_columns = linear_operator("resize_columns", default=_resized_columns, cuda=_columns_by_row)
_columns_transposed = linear_operator(
    "resize_columns_transposed",
    default=_resized_columns_gradient,
    cuda=functools.partial(_columns_by_row, contracted=1),
)
define_transposes(_columns, {0: (_columns_transposed, (0,))}, 1)
define_transposes(_columns_transposed, {0: (_columns, (0,))}, 1)


def _product(a, b, axes):
    # Highest: GPUs and TPUs would round float32 to 10 or 8 bits of mantissa.
    return lax.dot_general(a, b, axes, precision=lax.Precision.HIGHEST)


def _interpolation_matrix(old, new, align_corners, dtype):
    """Computes the weight [new, old] of each old position in each new one."""
    return _weights(jnp.arange(new)[:, None], jnp.arange(old)[None], old, new, align_corners, dtype)


def _weights(i, j, old, new, align_corners, dtype):
    """Computes the weights of old positions j in new positions i.

    Positions come from integer division, which is exact for any size. Sizes may be symbolic, as in
    `jax.export`.
    """
    dividend, divisor = _position(i, old, new, align_corners)
    below, beyond = dividend // divisor, (dividend % divisor).astype(dtype) / divisor.astype(dtype)
    steps = j - below
    return jnp.where(steps == 0, 1 - beyond, 0) + jnp.where(steps == 1, beyond, 0)


def _position(i, old, new, align_corners, numpy=jnp):
    """Returns dividend and divisor of the old position on which a new position i lies."""
    if align_corners:
        return i * (old - 1), numpy.maximum(new - 1, 1)
    divisor = numpy.asarray(2 * new)
    return numpy.clip((2 * i + 1) * old - new, 0, divisor * (old - 1)), divisor


def upsample_nearest(x, size: Sequence[int]):
    """Doubles maps by nearest neighbours and crops them to a size, whose sides may be odd.

    Args:
      x: [batch, height, width, channels] of a float dtype.
      size: height and width of the result: at most twice those of x.

    Returns:
      [batch, *size, channels] of the same dtype.
    """
    chex.assert_rank(x, 4, custom_message="x")
    if all(isinstance(side, int) for side in x.shape):
        doubled = apply(_doubled, x, options=())
    else:  # symbolic sizes of `jax.export`
        doubled = _repeated(x, options=())
    return doubled[:, : size[0], : size[1]]


def _repeated(x, *, options):
    del options
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _multiplied(x, *, options):
    """Multiplies by matrices of zeros and ones, which is exact for finite numbers."""
    del options
    batch, height, width, channels = x.shape
    columns = _product(x, _repetition(width, x.dtype), (((2,), (0,)), ((), ()))).swapaxes(2, 3)
    columns = columns.reshape(batch, height, 2 * width * channels)
    rows = jnp.broadcast_to(_repetition(height, x.dtype), (batch, height, 2 * height))
    doubled = _product(rows, columns, (((1,), (1,)), ((0,), (0,))))
    return doubled.reshape(batch, 2 * height, 2 * width, channels)


def _repetition(number, dtype):
    """Returns the matrix [number, 2 · number] that repeats each entry of a row."""
    return (jnp.arange(number)[:, None] == jnp.arange(2 * number)[None] // 2).astype(dtype)


def _sums(form):
    """Returns the transpose of a form of doubling: the sums of 2 × 2 neighbours."""

    def sums(gradient, *, options):
        batch, height, width, channels = gradient.shape
        shape = batch, height // 2, width // 2, channels
        x = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return transposed(functools.partial(form, options=options), x, gradient)

    return sums


# On TPUs, neighbours in a row share a register, and repeating them costs more than the products.
_doubled = linear_operator("double", default=_repeated, tpu=_multiplied)
_summed = linear_operator("double_transposed", default=_sums(_repeated), tpu=_sums(_multiplied))
define_transposes(_doubled, {0: (_summed, (0,))}, 1)
define_transposes(_summed, {0: (_doubled, (0,))}, 1)
