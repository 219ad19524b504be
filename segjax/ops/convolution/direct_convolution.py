"""XLA's own convolution of stride 1 on CPU, in shapes for which YNNPACK is fast (jaxlib 0.10.2).

It shares out among threads what is computed of one row of the map, in parts of some 8,192 values of
the output, and channels by 64. The rows of a narrow map with few channels are all computed by one
thread. So here strips of such a map are laid side by side, as the rows of a wide one. And what has
no padding at all takes 1.3 to 5 times as long as with a column of it.
"""

import jax.numpy as jnp
from jax import lax

ROWS_OF_STRIP = 16
VALUES_OF_THREAD = 8192  # of an output's row, that a thread computes
MIN_FEATURES_OF_THREADS = 128  # with as many output channels, threads share them


def convolve(inputs, kernel, padding, rate: int):
    """Computes the convolution of [batch, height, width, in] with [rows, columns, in, out].

    Args:
      padding: rows before and after the map, columns before and after it.
      rate: atrous rate.
    """
    if _is_narrow(inputs, kernel, padding, rate):
        return _strips_side_by_side(inputs, kernel, padding, rate)
    if any(number for of in padding for number in of):
        return _plain(inputs, kernel, padding, rate)
    return _plain(inputs, kernel, [(0, 0), (0, 1)], rate)[:, :, :-1]


def _plain(inputs, kernel, padding, rate):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(1, 1),
        padding=padding,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _is_narrow(inputs, kernel, padding, rate):
    """Whether one thread would compute it, and several compute its strips."""
    (batch, height, width, _), features = inputs.shape, kernel.shape[3]
    rows, columns = (rate * (taps - 1) for taps in kernel.shape[:2])
    width += sum(padding[1])
    strips = -(-(height + sum(padding[0]) - rows) // ROWS_OF_STRIP)
    return (
        features < MIN_FEATURES_OF_THREADS
        and (width - columns) * features <= VALUES_OF_THREAD
        and batch * strips * width * features >= 2 * VALUES_OF_THREAD
        and rows <= ROWS_OF_STRIP
        and columns > 0
    )


def _strips_side_by_side(inputs, kernel, padding, rate):
    batch, height, width, channels = inputs.shape
    halo, columns = (rate * (taps - 1) for taps in kernel.shape[:2])
    (above, below), (left, right) = padding
    height, width = height + above + below - halo, width + left + right
    strips = -(-height // ROWS_OF_STRIP)
    # A strip's halo is the beginning of the next: one more lies behind the last.
    behind = (strips + 1) * ROWS_OF_STRIP - inputs.shape[1] - above
    x = jnp.pad(inputs, ((0, 0), (above, behind), (left, right), (0, 0)))
    x = x.reshape(batch, strips + 1, ROWS_OF_STRIP, width, channels)
    x = jnp.concatenate([x[:, :-1], x[:, 1:, :halo]], axis=2)
    x = x.transpose(2, 0, 1, 3, 4).reshape(1, ROWS_OF_STRIP + halo, -1, channels)
    # What reaches from one strip into the next is computed, too, and left out.
    x = _plain(x, kernel, [(0, 0), (0, columns)], rate)
    x = x.reshape(ROWS_OF_STRIP, batch, strips, width, -1)[:, :, :, : width - columns]
    x = x.transpose(1, 2, 0, 3, 4)
    return x.reshape(batch, strips * ROWS_OF_STRIP, *x.shape[3:])[:, :height]
