"""Resizing of images whose size, and whose new size, may only be known to the device.

`segjax.data.augmentation.instance.resize_image` in JAX: Pillow's filter where an image shrinks,
OpenCV's two neighbours elsewhere. Both round pixels of 8 bits in between, and so does this.
"""

import jax.numpy as jnp
from jax import lax

_OPENCV_BITS = 11  # of OpenCV's weights for pixels of 8 bits


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
    """Computes Pillow's bilinear filter, columns first."""
    is_picture = images.dtype == jnp.uint8 and images.shape[3] == 3
    x = images.astype(jnp.float32)
    for axis in (1, 0):
        weights = _area_weights(images.shape[1 + axis], old[axis], new[axis], room[axis])
        x = lax.dot_general(
            x, weights, (((1 + axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )
        x = jnp.moveaxis(x, -1, 1 + axis)
        if is_picture:
            x = jnp.floor(x + 0.5)
    return jnp.rint(x) if jnp.issubdtype(images.dtype, jnp.integer) else x


def _area_weights(count, old, new, room: int):
    """Computes the weight [room, count] of each old pixel in each new one.

    A triangle of the width of two new pixels, or of two old ones if those are larger, stands over
    the new pixel's centre. Distances are integers: in units of half a pixel of an axis of old · new
    pixels.
    """
    places = jnp.arange(room, dtype=jnp.int32)[:, None]
    sources = jnp.arange(count, dtype=jnp.int32)[None]
    distance = jnp.abs((2 * sources + 1) * new - (2 * places + 1) * old)
    reach = 2 * jnp.maximum(old, new)
    weights = jnp.maximum(1 - distance.astype(jnp.float32) / reach.astype(jnp.float32), 0)
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1e-6)


def _linear(images, old, new, room):
    """Computes OpenCV's bilinear resizing, columns first."""
    fixed = images.dtype == jnp.uint8
    x = images.astype(jnp.int32 if fixed else jnp.float32)
    for axis in (1, 0):
        below, above, beyond = _neighbours(old[axis], new[axis], room[axis])
        shape = [1, 1, 1, 1]
        shape[1 + axis] = room[axis]
        beyond = beyond.reshape(shape)
        low, high = (jnp.take(x, place, axis=1 + axis, mode="clip") for place in (below, above))
        if not fixed:
            x = low * (1 - beyond) + high * beyond
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


def _neighbours(old, new, room: int):
    """Returns the two old pixels around each new one, and the weight of the second, float32."""
    place = (2 * jnp.arange(room, dtype=jnp.int32) + 1) * old - new
    below, rest = place // (2 * new), place % (2 * new)
    outside = (below < 0) | (below >= old - 1)
    beyond = jnp.where(outside, 0, rest).astype(jnp.float32) / (2 * new).astype(jnp.float32)
    below = jnp.clip(below, 0, old - 1)
    return below, jnp.minimum(below + 1, old - 1), beyond
