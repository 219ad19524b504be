"""Masks in the frames of their boxes, pasted into the image: `segjax.inference.paste` in JAX."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.export.sizes import Size
from segjax.inference.paste import PasteRule


def paste(masks, boxes, size: tuple[Size, Size], *, rule: PasteRule, threshold: float):
    """Returns the pixels of each object, bool [batch, detections, height, width].

    One detection of each image is pasted at a time: probabilities of all of them in every pixel
    would take four times the memory of the result.

    Args:
      masks: probabilities [batch, detections, h, w]; see `paste_to_rle`.
      boxes: [batch, detections, 4] in pixels of the image.
      size: height and width of the images, which may be open.
      rule: the system that the model follows.
      threshold: the smallest probability of a pixel of the object.
    """
    weights = _sampling if rule == "detectron2" else _resizing
    if rule == "torchvision":
        masks = jnp.pad(masks, ((0, 0), (0, 0), (1, 1), (1, 1)))

    def paste_one(pair):
        mask, box = pair
        rows, columns = (
            weights(box[:, axis], box[:, axis + 2], mask.shape[2 - axis], size[1 - axis])
            for axis in (1, 0)
        )
        pasted = jnp.einsum(
            "bhi,bij,bwj->bhw", rows, mask, columns, precision=lax.Precision.HIGHEST
        )
        is_box = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        return (pasted >= threshold) & is_box[:, None, None]

    pasted = lax.map(paste_one, (masks.swapaxes(0, 1), boxes.swapaxes(0, 1)))
    return pasted.swapaxes(0, 1)


def _sampling(low, high, count: int, side: Size):
    """Computes detectron2's weights [batch, side, count] of one axis."""
    step = jnp.maximum(high - low, 1e-6)[:, None] / count
    centres = jnp.arange(side, dtype=jnp.int32).astype(jnp.float32)[None] + 0.5
    return _bilinear((centres - low[:, None]) / step - 0.5, count)


def _resizing(low, high, count: int, side: Size):
    """Computes torchvision's weights for a mask with a border of zeros."""
    centre, half = (high + low) * 0.5, (high - low) * 0.5
    half = half * np.float32(count / (count - 2))
    low, high = (x.astype(jnp.int32)[:, None] for x in (centre - half, centre + half))
    length = jnp.maximum(high - low + 1, 1)
    places = jnp.arange(side, dtype=jnp.int32)[None] - low
    position = (places.astype(jnp.float32) + 0.5) * count / length.astype(jnp.float32) - 0.5
    weights = _bilinear(jnp.clip(position, 0, count - 1), count)
    inside = (places >= 0) & (places < jnp.maximum(high - low + 1, 0))
    return jnp.where(inside[..., None], weights, 0.0)


def _bilinear(position, count: int):
    """Computes weights [batch, places, count] of linear interpolation; cells outside are 0."""
    cells = jnp.arange(count, dtype=jnp.int32).astype(jnp.float32)
    return jnp.maximum(1 - jnp.abs(position[..., None] - cells[None, None]), 0)
