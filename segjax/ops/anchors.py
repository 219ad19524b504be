"""Anchors: boxes of a few sizes and shapes, centred on every position of a feature map."""

import chex
import jax.numpy as jnp
import numpy as np


def base_anchors(sizes, aspect_ratios, *, rounded: bool = False) -> np.ndarray:
    """Computes the anchors around the origin, one for each size and aspect ratio.

    Args:
      sizes: square roots of the areas, in pixels.
      aspect_ratios: height / width.
      rounded: whether to round to whole coordinates. torchvision does; detectron2 does not.

    Returns:
      [sizes · aspect ratios, 4] float32, ordered by size and then by ratio, as in detectron2.
      (torchvision orders several sizes by ratio and then by size.)

    Raises:
      ValueError: `sizes` or `aspect_ratios` is empty, or a value is not above zero.
    """
    for name, values in (("sizes", sizes), ("aspect_ratios", aspect_ratios)):
        if len(values) == 0 or not all(value > 0 for value in values):
            raise ValueError(f"{name}={values!r} of anchors: expected numbers above zero")
    area = np.square(np.asarray(sizes, np.float64))[:, None]
    ratios = np.asarray(aspect_ratios, np.float64)
    widths = np.sqrt(area / ratios)
    half = np.stack((widths, widths * ratios), axis=-1).reshape(-1, 2) / 2
    anchors = np.concatenate((-half, half), axis=1)
    return (np.round(anchors) if rounded else anchors).astype(np.float32)


def grid_anchors(
    feature_size, *, stride, sizes, aspect_ratios, rounded: bool = False, offset: float = 0.0
):
    """Computes the anchors of a feature map.

    Ren et al., Faster R-CNN (2015), section 3.1. The anchors of position (i, j) are centred on
    x = (j + offset) · stride, y = (i + offset) · stride.

    Args:
      feature_size: height and width of the feature map.
      stride: pixels between positions: one number, or a pair (vertical, horizontal). torchvision
        uses padded image size // feature size.
      sizes, aspect_ratios, rounded: see `base_anchors`.
      offset: 0 as in torchvision and detectron2; 0.5 centres the anchors on the cells.

    Returns:
      [height · width · anchors, 4] float32, in the order of a [height, width, anchors] map.

    Raises:
      ValueError: see `base_anchors`.
    """
    chex.assert_equal(len(feature_size), 2, custom_message="feature_size")
    chex.assert_is_broadcastable(np.shape(stride), (2,), custom_message="stride")
    base = jnp.asarray(base_anchors(sizes, aspect_ratios, rounded=rounded))
    # Computed from iotas: as constants, an image's anchors would be megabytes to compile.
    y, x = (
        (jnp.arange(number, dtype=jnp.float32) + offset) * step
        for number, step in zip(feature_size, np.broadcast_to(stride, 2).tolist(), strict=True)
    )
    x, y = jnp.meshgrid(x, y)
    centres = jnp.stack((x, y, x, y), axis=-1)
    return (centres[:, :, None] + base[None, None]).reshape(-1, 4)
