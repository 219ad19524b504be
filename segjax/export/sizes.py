"""Arithmetic on sizes that may be open (symbolic), as in `jax.export`."""

from typing import Any

from jax import export, lax

# An int, or a symbolic dimension of `jax.export`, which behaves like one.
Size = Any


def is_open(*sizes: Size) -> bool:
    """Whether any of the sizes is symbolic."""
    return not all(isinstance(size, int) for size in sizes)


def at_least(size: Size, least: int) -> Size:
    """Returns the larger of a size and a number. Python's `max` cannot compare symbolic sizes."""
    if not is_open(size):
        return max(size, least)
    (larger,) = export.symbolic_shape(f"max({size}, {least})", scope=size.scope)
    return larger


def with_size(images, height: Size, width: Size):
    """Pads images [batch, h, w, ...] with zeros at the bottom and right, or crops them there."""
    none = (0, 0, 0)
    changes = (height - images.shape[1], width - images.shape[2])
    padding = [none, *((0, change, 0) for change in changes), *[none] * (images.ndim - 3)]
    return lax.pad(images, images.dtype.type(0), padding)
