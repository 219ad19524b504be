"""How a network covers images, in JAX: what `segjax.inference` does in NumPy, on the device.

Sizes of images may be open; see `segjax.export.sizes`. Windows are predicted one after the other,
each in all images of the batch at once, so that memory grows with the image and not with the number
of windows.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.export.sizes import Size, at_least, with_size
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.tiling import Tiling


def check_covering(covering: Any) -> None:
    """Raises ValueError for a covering that has no form that can be exported."""
    if type(covering) not in (WholeImage, SlidingWindow, Tiling):
        raise ValueError(f"the covering {type(covering).__name__} has no form that can be exported")


def cover(network: Callable, images, covering: Any):
    """Predicts images by a network and a covering.

    Args:
      network: float32 images [batch, h, w, channels] → [batch, *kept size, classes].
      images: float32 [batch, height, width, channels].
      covering: one that `check_covering` accepts.

    Returns:
      [batch, height, width, classes].
    """
    height, width = images.shape[1:3]
    if isinstance(covering, WholeImage):
        padded = padded_size(covering, (height, width))
        return with_size(network(with_size(images, *padded)), height, width)
    return _by_windows(network, images, covering)


def padded_size(covering: WholeImage, size: tuple[Size, Size]) -> tuple[Size, Size]:
    """Computes `covering.input_size` for sizes that may be open."""
    multiple = covering.multiple

    def padded(length: Size, least: int) -> Size:
        rest = least % multiple
        # A symbolic result is then rest + multiple · (an unknown), which divides by the strides.
        return rest + multiple * at_least(
            (length - rest + multiple - 1) // multiple, least // multiple
        )

    height, width = (padded(*pair) for pair in zip(size, covering.size, strict=True))
    return height, width


def _by_windows(network, images, covering: SlidingWindow | Tiling):
    batch, height, width, _ = images.shape
    tiled = isinstance(covering, Tiling)
    input_size = covering.input_size if tiled else covering.size
    kept = covering.kept_size(input_size)
    margin = covering.margin if tiled else (0, 0)
    starts, ends = [], []
    for length, size, stride in zip((height, width), kept, covering.stride, strict=True):
        room = at_least(length - size, 0)
        count = (room + 2 * stride - 1) // stride
        first = jnp.arange(count, dtype=jnp.int32) * stride
        # The last tiles reach beyond the image; the last sliding windows move back inside.
        starts.append(first if tiled else jnp.minimum(first, jnp.asarray(room, jnp.int32)))
        ends.append((count - 1) * stride + size)
    columns = jnp.asarray(starts[1].shape[0], jnp.int32)

    def predict_window(number, total):
        corner = starts[0][number // columns], starts[1][number % columns]
        window = images
        for axis in (0, 1):
            place = corner[axis] - margin[axis] + jnp.arange(input_size[axis], dtype=jnp.int32)
            length = jnp.asarray(images.shape[1 + axis], jnp.int32)
            inside = place < length
            source = _mirrored(place, length) if tiled else jnp.minimum(place, length - 1)
            window = jnp.take(window, source, axis=1 + axis, mode="clip")
            if not tiled:
                window = jnp.where(jnp.expand_dims(inside, [0, 2 - axis, 3]), window, 0.0)
        output = network(window)
        zero = jnp.zeros((), jnp.int32)
        place = zero, *corner, zero
        before = lax.dynamic_slice(total, place, output.shape)
        return lax.dynamic_update_slice(total, before + output, place)

    like = jnp.zeros((1, *input_size, images.shape[3]), images.dtype)
    classes = _outputs(network, like)
    total = jnp.zeros((batch, *ends, classes), jnp.float32)
    count = jnp.asarray(starts[0].shape[0] * starts[1].shape[0], jnp.int32)
    total = lax.fori_loop(jnp.zeros((), jnp.int32), count, predict_window, total)
    rows, across = (
        _windows_over(jnp.arange(end, dtype=jnp.int32), first, size)
        for end, first, size in zip(ends, starts, kept, strict=True)
    )
    mean = total / (rows[None, :, None, None] * across[None, None, :, None])
    return with_size(mean, height, width)


def _outputs(network, like) -> int:
    """Returns the number of the network's classes."""
    return jax.eval_shape(network, like).shape[-1]


def _windows_over(place, starts, size: int):
    """Counts the windows over each place of an axis, at least 1, float32."""
    inside = (starts[:, None] <= place[None]) & (place[None] < starts[:, None] + size)
    return jnp.maximum(jnp.sum(inside, axis=0, dtype=jnp.int32), 1).astype(jnp.float32)


def _mirrored(place, length):
    """Maps indices of any sign to pixels of an axis that is mirrored at both ends."""
    period = jnp.maximum(2 * length - 2, 1)
    place = jnp.mod(place, period)
    return jnp.minimum(place, period - place)
