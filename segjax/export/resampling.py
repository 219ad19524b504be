"""Resizing of images whose size, and whose new size, may only be known to the device.

`segjax.data.augmentation.instance.resize_image` in JAX: Pillow's filter where an image shrinks,
OpenCV's two neighbours elsewhere. Both round pixels of 8 bits in between, and so does this: RGB
images of uint8 get the same pixels. Pillow computes other images in float64, and this in float32.
"""

import jax.numpy as jnp
import PIL
from jax import lax

# Bits of the libraries' weights for pixels of 8 bits.
_OPENCV_BITS, _PILLOW_BITS = 11, 22
# Since its version 13, Pillow begins with the rows where that saves time. `predict` uses the
# installed Pillow, so an exported function follows the Pillow that was installed at the export.
_PILLOW_CHOOSES_THE_ORDER = int(PIL.__version__.split(".")[0]) >= 13


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

    def linear(images):
        return _linear(images, old, new, room)

    def area(images):
        return _area(images, old, new, room)

    if not antialias:
        return linear(images)
    return lax.cond((new[0] < old[0]) | (new[1] < old[1]), area, linear, images)


def _area(images, old, new, room):
    """Computes Pillow's bilinear filter."""
    # The branch of `resize_image` that gives Pillow pixels of 8 bits; the other gives it floats.
    is_picture = images.dtype == jnp.uint8 and images.shape[3] == 3
    one_axis = _area_of_bytes if is_picture else _area_of_floats

    def in_order(images, *axes: int):
        for axis in axes:
            images = one_axis(images, axis, old[axis], new[axis], room[axis])
        return images

    def columns_first(images):
        return in_order(images, 1, 0)

    def rows_first(images):
        return in_order(images, 0, 1)

    x = images.astype(jnp.float32)
    if _PILLOW_CHOOSES_THE_ORDER:
        lost = [before - after for before, after in zip(old, new, strict=True)]
        x = lax.cond((lost[0] > 0) & (lost[0] > 2 * lost[1]), rows_first, columns_first, x)
    else:
        x = columns_first(x)
    return jnp.rint(x) if jnp.issubdtype(images.dtype, jnp.integer) else x


def _area_of_floats(x, axis: int, old, new, room: int):
    """Computes Pillow's filter along an axis of float32 images, but for the last digits."""
    shares, total = _triangles(x.shape[1 + axis], old, new, room)
    weights = shares.astype(jnp.float32) / total.astype(jnp.float32)
    return _product(x, weights, axis, lax.Precision.HIGHEST)


def _area_of_bytes(x, axis: int, old, new, room: int):
    """Computes Pillow's filter along an axis for integers below 256, to the bit.

    Pillow's Resample.c rounds weights to 22 bits, adds integers, and rounds the sum to 8 bits. Here
    each weight is the sum of three parts of at most 8 bits. The float32 sums of their products with
    pixels are integers below 2^24. They are exact on every device and at every precision, unless an
    image shrinks more than 250 times.
    """
    shares, total = _triangles(x.shape[1 + axis], old, new, room)
    weights = _rounded_quotient(shares, total, _PILLOW_BITS)
    result = jnp.asarray(1 << (_PILLOW_BITS - 1), jnp.int32)
    for shift, mask in ((14, 511), (7, 127), (0, 127)):
        part = ((weights >> shift) & mask).astype(jnp.float32)
        result = result + (_product(x, part, axis).astype(jnp.int32) << shift)
    return jnp.clip(result >> _PILLOW_BITS, 0, 255).astype(jnp.float32)


def _product(x, weights, axis: int, precision=None):
    """Sums an axis of images by weights [new, old]."""
    x = lax.dot_general(x, weights, (((1 + axis,), (1,)), ((), ())), precision=precision)
    return jnp.moveaxis(x, -1, 1 + axis)


def _triangles(count, old, new, room: int):
    """Returns each old pixel's share in each new one, int32 [room, count], and sums [room, 1].

    A triangle of the width of two new pixels, or of two old ones if those are larger, stands over
    the new pixel's centre. Distances are integers: in units of half a pixel of an axis of old · new
    pixels.
    """
    places = jnp.arange(room, dtype=jnp.int32)[:, None]
    sources = jnp.arange(count, dtype=jnp.int32)[None]
    distance = jnp.abs((2 * sources + 1) * new - (2 * places + 1) * old)
    shares = jnp.maximum(2 * jnp.maximum(old, new) - distance, 0)
    return shares, jnp.maximum(jnp.sum(shares, axis=1, keepdims=True, dtype=jnp.int32), 1)


def _rounded_quotient(dividend, divisor, bits: int):
    """Computes dividend · 2^bits / divisor, halves up, for a quotient of at most 1, in int32."""
    whole, rest = dividend // divisor, dividend % divisor
    for _ in range(bits):  # long division: the product has too many digits for int32
        fits = 2 * rest >= divisor
        whole = 2 * whole + fits.astype(jnp.int32)
        rest = 2 * rest - jnp.where(fits, divisor, 0)
    return whole + (2 * rest >= divisor).astype(jnp.int32)


def _linear(images, old, new, room):
    """Computes OpenCV's bilinear resizing, columns first."""
    fixed = images.dtype == jnp.uint8
    x = images.astype(jnp.int32 if fixed else jnp.float32)
    for axis in (1, 0):
        below, above, beyond = _neighbours(old[axis], new[axis], room[axis], of_bytes=fixed)
        shape = [1, 1, 1, 1]
        shape[1 + axis] = room[axis]
        beyond = beyond.reshape(shape)
        low, high = (jnp.take(x, place, axis=1 + axis, mode="clip") for place in (below, above))
        if not fixed:
            x = low + (high - low) * beyond
            continue
        unit = 1 << _OPENCV_BITS
        shares = [jnp.rint(share * unit).astype(jnp.int32) for share in (1 - beyond, beyond)]
        if axis == 1:
            x = low * shares[0] + high * shares[1]
        else:  # OpenCV's loop for columns of 8 bits, with its losses
            sums = [(side * (x >> 4)) >> 16 for side, x in zip(shares, (low, high), strict=True)]
            x = (sums[0] + sums[1] + 2) >> 2
    x = x.astype(jnp.float32)
    return jnp.rint(x) if jnp.issubdtype(images.dtype, jnp.integer) else x


def _neighbours(old, new, room: int, *, of_bytes: bool):
    """Returns the two old pixels around each new one, and the weight of the second, float32."""
    place = (2 * jnp.arange(room, dtype=jnp.int32) + 1) * old - new
    below, rest = place // (2 * new), place % (2 * new)
    beyond = rest.astype(jnp.float32) / (2 * new).astype(jnp.float32)
    if of_bytes:  # OpenCV rounds the whole place to float32, so its weights have fewer digits
        first = below.astype(jnp.float32)
        beyond = (first + beyond) - first
    last = old - 1  # beyond the border, both neighbours are the border's pixel
    return jnp.clip(below, 0, last), jnp.clip(below + 1, 0, last), beyond
