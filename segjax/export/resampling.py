"""Resizing of images whose size, and whose new size, may only be known to the device.

`segjax.data.augmentation.instance.resize_image` in JAX: Pillow's filter where an image shrinks,
OpenCV's two neighbours elsewhere. Colour pictures of 8 bits become the same to the last bit: both
libraries compute these in integers and round in between, and so does this. Other images are
computed in float32, and integers may differ by one where a value lies half way between two.
"""

from functools import partial

import jax.numpy as jnp
import PIL
from jax import lax

# Pillow 13 begins with the rows where they become far fewer (python-pillow/Pillow#9549).
_PILLOW_CHOOSES = int(PIL.__version__.partition(".")[0]) >= 13

_OPENCV_BITS = 11  # of OpenCV's weights for pixels of 8 bits
_PILLOW_BITS = (8, 7, 7)  # of Pillow's, in parts
_PLACE_BITS = 24  # of a place between two pixels


def resample(images, size, room: tuple[int, int], *, antialias: bool):
    """Resizes images into the top left corner of a room.

    Args:
      images: [batch, height, width, channels]; integers are rounded as in `resize_image`.
      size: the new height and width, ints or int32 scalars.
      room: height and width of the result, at least `size`.
      antialias: see `resize_image`.

    Returns:
      float32 [batch, *room, channels]; what lies beyond `size` is not defined.
    """
    old = [jnp.asarray(side, jnp.int32) for side in images.shape[1:3]]
    new = [jnp.asarray(side, jnp.int32) for side in size]

    linear = partial(_linear, old=old, new=new, room=room)
    if not antialias:
        return linear(images)
    columns_first, rows_first = (
        partial(_area, old=old, new=new, room=room, order=order) for order in ((1, 0), (0, 1))
    )
    fewer = [before - after for before, after in zip(old, new, strict=True)]
    begins_with_rows = _PILLOW_CHOOSES & (fewer[0] > 2 * fewer[1])
    form = jnp.where((fewer[0] > 0) | (fewer[1] > 0), 1 + begins_with_rows.astype(jnp.int32), 0)
    return lax.switch(form, (linear, columns_first, rows_first), images)


def _area(images, *, old, new, room, order):
    """Computes Pillow's bilinear filter along the axes in an order: 0 for rows, 1 for columns."""
    # Pillow computes pictures of 8 bits in integers, and other images in floating point.
    is_picture = images.dtype == jnp.uint8 and images.shape[3] == 3
    x = images.astype(jnp.float32)
    for axis in order:
        shares, total = _area_shares(images.shape[1 + axis], old[axis], new[axis], room[axis])
        if is_picture:
            x = _fixed_point_product(x, shares, total, 1 + axis)
        else:
            weights = shares.astype(jnp.float32) / total.astype(jnp.float32)
            x = _product(x, weights, 1 + axis, precision=lax.Precision.HIGHEST)
    return jnp.rint(x) if jnp.issubdtype(images.dtype, jnp.integer) else x


def _area_shares(count, old, new, room: int):
    """Computes the share [room, count] of each old pixel in each new one, and a new one's total.

    A triangle of the width of two new pixels, or of two old ones if those are larger, stands over
    the new pixel's centre. Distances are integers: in units of half a pixel of an axis of old · new
    pixels.
    """
    places = jnp.arange(room, dtype=jnp.int32)[:, None]
    sources = jnp.arange(count, dtype=jnp.int32)[None]
    distance = jnp.abs((2 * sources + 1) * new - (2 * places + 1) * old)
    shares = jnp.maximum(2 * jnp.maximum(old, new) - distance, 0)
    return shares, jnp.maximum(jnp.sum(shares, axis=1, keepdims=True), 1)


def _fixed_point_product(x, shares, total, axis):
    """Computes weighted means of 8-bit pixels as Pillow does: in integers, with weights of 22 bits.

    The weights are cut into parts of 8 bits at most. Products and sums of such numbers are exact
    in float32, also on devices that multiply in bfloat16.
    """
    bits = sum(_PILLOW_BITS)
    parts, rest = _divide(shares, total, _PILLOW_BITS)
    parts[-1] += (2 * rest >= total).astype(jnp.int32)
    result = jnp.int32(1 << (bits - 1))
    shift = bits
    for part, width in zip(parts, _PILLOW_BITS, strict=True):
        shift -= width
        result = result + (_product(x, part.astype(jnp.float32), axis).astype(jnp.int32) << shift)
    return jnp.clip(result >> bits, 0, 255).astype(jnp.float32)


def _product(x, weights, axis, precision=None):
    """Replaces an axis of the images by weighted sums [room, count] over it."""
    x = lax.dot_general(x, weights, (((axis,), (1,)), ((), ())), precision=precision)
    return jnp.moveaxis(x, -1, axis)


def _linear(images, *, old, new, room):
    """Computes OpenCV's bilinear resizing, columns first."""
    fixed = images.dtype == jnp.uint8
    x = images.astype(jnp.int32 if fixed else jnp.float32)
    for axis in (1, 0):
        below, above, fraction = _neighbours(old[axis], new[axis], room[axis], is_row=axis == 0)
        shape = [1, 1, 1, 1]
        shape[1 + axis] = room[axis]
        shares = [share.reshape(shape) for share in ((1 << _PLACE_BITS) - fraction, fraction)]
        pixels = [jnp.take(x, place, axis=1 + axis, mode="clip") for place in (below, above)]
        if not fixed:
            weight = shares[1].astype(jnp.float32) / (1 << _PLACE_BITS)
            x = pixels[0] + (pixels[1] - pixels[0]) * weight
            continue
        weights = [_without_last_bits(share, _PLACE_BITS - _OPENCV_BITS) for share in shares]
        if axis == 1:
            x = pixels[0] * weights[0] + pixels[1] * weights[1]
        else:  # OpenCV's loop for columns of 8 bits, with its losses
            sums = [(side * (x >> 4)) >> 16 for side, x in zip(weights, pixels, strict=True)]
            x = (sums[0] + sums[1] + 2) >> 2
    x = x.astype(jnp.float32)
    return jnp.rint(x) if jnp.issubdtype(images.dtype, jnp.integer) else x


def _neighbours(old, new, room: int, *, is_row: bool):
    """Returns the two old pixels around each new one, and the second's share of 2²⁴, int32.

    OpenCV holds a new pixel's place in float32, so that the share has fewer bits the larger the
    place is. Beyond the first and last pixel, its columns have one neighbour, and its rows two
    equal ones.
    """
    place = (2 * jnp.arange(room, dtype=jnp.int32) + 1) * old - new
    below, rest = place // (2 * new), place % (2 * new)
    parts, rest = _divide(rest, 2 * new, (8, 8, 7))
    # The last of the 24 bits says whether anything is left, so that halves are recognised.
    fraction = (parts[0] << 16) + (parts[1] << 8) + (parts[2] << 1)
    fraction = fraction + (rest > 0).astype(jnp.int32)
    lost = jnp.where(below > 0, 32 - lax.clz(below), 0)
    fraction = _without_last_bits(fraction, lost) << lost
    if not is_row:
        fraction = jnp.where((below < 0) | (below >= old - 1), 0, fraction)
    return jnp.clip(below, 0, old - 1), jnp.clip(below + 1, 0, old - 1), fraction


def _divide(dividend, divisor, widths):
    """Divides int32 numbers of at most 24 bits, of which the dividend is the smaller or equal one.

    Returns:
      The bits after the point, int32, as many at a time as `widths` says; and what is left.
    """
    rest, divisor = dividend.astype(jnp.uint32), jnp.asarray(divisor).astype(jnp.uint32)
    parts = []
    for width in widths:
        rest = rest << width
        parts.append((rest // divisor).astype(jnp.int32))
        rest = rest % divisor
    return parts, rest.astype(jnp.int32)


def _without_last_bits(numbers, count):
    """Divides by 2 to the power of `count` and rounds, halves to even."""
    kept = numbers >> count
    lost = numbers - (kept << count)
    half = (1 << count) >> 1
    is_more = (lost > half) | ((lost == half) & (kept % 2 == 1))
    return kept + ((count > 0) & is_more).astype(jnp.int32)
