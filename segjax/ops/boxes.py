"""Boxes [x_min, y_min, x_max, y_max] in continuous pixel coordinates: area, overlap, coding.

A box's width is x_max − x_min, with nothing added. Where that or the height is not above zero, the
box is empty.
"""

import math

import chex
import jax
import jax.numpy as jnp

# Detectron's limit on dw and dh: a box grows no further than from 16 pixels to 1000.
LOG_SCALE_LIMIT = math.log(1000 / 16)


def box_area(boxes) -> jax.Array:
    """Computes the area of each box, 0 for an empty one.

    Args:
      boxes: [..., 4].

    Returns:
      [...] in square pixels.
    """
    chex.assert_shape(boxes, (..., 4), custom_message="boxes")
    return _area(*jnp.moveaxis(boxes, -1, 0))


def box_iou(a, b) -> jax.Array:
    """Computes the intersection over union of each box of `a` with each box of `b`.

    Args:
      a: [N, 4].
      b: [M, 4].

    Returns:
      [N, M]; 0, never NaN, where a box is empty.
    """
    chex.assert_shape(a, (None, 4), custom_message="a")
    chex.assert_shape(b, (None, 4), custom_message="b")
    a, b = a.T[:, :, None], b.T[:, None]
    return coordinate_iou(a, b)


def coordinate_iou(a, b):
    """Computes the intersection over union of boxes whose coordinates lie along the first axis.

    That axis first, and the boxes along a later one, is the layout in which XLA vectorises.

    Args:
      a, b: [4, ...]; the other axes broadcast.

    Returns:
      [...]; 0, never NaN, where a box is empty.
    """
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    union = _area(*a) + _area(*b) - intersection
    return jnp.where(intersection > 0, intersection / jnp.where(union > 0, union, 1), 0)


def _area(x_min, y_min, x_max, y_max):
    return jnp.maximum(x_max - x_min, 0) * jnp.maximum(y_max - y_min, 0)


def encode_boxes(boxes, anchors, weights) -> jax.Array:
    """Computes the deltas that turn anchors into boxes: (dx, dy, dw, dh), times the weights.

    Girshick et al., Rich Feature Hierarchies (CVPR 2014), appendix C: dx = (x − x_anchor) /
    w_anchor between the centres, dw = log(w / w_anchor).

    Args:
      boxes: [..., 4].
      anchors: [..., 4]; the leading axes broadcast. A side of a box or an anchor that is not above
        zero counts as one pixel, so that the deltas of invalid entries are finite.
      weights: of dx, dy, dw and dh. They bring the deltas to unit variance; the box head's are
        (10, 10, 5, 5).

    Returns:
      [..., 4] float32.
    """
    chex.assert_shape(boxes, (..., 4), custom_message="boxes")
    _check_coding(boxes, anchors, weights)
    x, y, width, height = _centres_and_sizes(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres_and_sizes(anchors)
    width, height, anchor_width, anchor_height = (
        jnp.where(side > 0, side, 1) for side in (width, height, anchor_width, anchor_height)
    )
    deltas = (
        weights[0] * (x - anchor_x) / anchor_width,
        weights[1] * (y - anchor_y) / anchor_height,
        weights[2] * jnp.log(width / anchor_width),
        weights[3] * jnp.log(height / anchor_height),
    )
    return jnp.stack(deltas, axis=-1)


def decode_boxes(deltas, anchors, weights) -> jax.Array:
    """Computes the boxes that deltas make of anchors: the inverse of `encode_boxes`.

    Computes in float32 for any dtype: bfloat16 coordinates would be 4 pixels apart at 1000. dw and
    dh are limited above to log(1000 / 16), as in Detectron, detectron2 and torchvision.

    Args:
      deltas: [..., 4].
      anchors: [..., 4]; the leading axes broadcast ([N, 1, 4] with deltas [N, classes, 4]).
      weights: those of the encoding.

    Returns:
      [..., 4] float32, not clipped to the image.
    """
    chex.assert_shape(deltas, (..., 4), custom_message="deltas")
    _check_coding(deltas, anchors, weights)
    x, y, width, height = _centres_and_sizes(anchors)
    dx, dy, dw, dh = jnp.moveaxis(deltas.astype(jnp.float32), -1, 0)
    x = dx / weights[0] * width + x
    y = dy / weights[1] * height + y
    half_width = 0.5 * jnp.exp(jnp.minimum(dw / weights[2], LOG_SCALE_LIMIT)) * width
    half_height = 0.5 * jnp.exp(jnp.minimum(dh / weights[3], LOG_SCALE_LIMIT)) * height
    return jnp.stack((x - half_width, y - half_height, x + half_width, y + half_height), axis=-1)


def clip_boxes(boxes, size) -> jax.Array:
    """Clips boxes to the image; a box wholly outside becomes empty.

    Args:
      boxes: [..., 4].
      size: height and width of the image; numbers, or an array [2] of integers or floats.

    Returns:
      [..., 4].
    """
    chex.assert_shape(boxes, (..., 4), custom_message="boxes")
    chex.assert_equal(len(size), 2, custom_message="size")
    height, width = (jnp.asarray(side).astype(boxes.dtype) for side in (size[0], size[1]))
    x_min, y_min, x_max, y_max = jnp.moveaxis(boxes, -1, 0)
    x_min, x_max = (jnp.clip(x, 0, width) for x in (x_min, x_max))
    y_min, y_max = (jnp.clip(y, 0, height) for y in (y_min, y_max))
    return jnp.stack((x_min, y_min, x_max, y_max), axis=-1)


def _check_coding(like, anchors, weights):
    """Asserts that anchors broadcast with `like` [..., 4], and that there are four weights."""
    shared = like.shape[-min(like.ndim, anchors.ndim) : -1]
    leading = [None if size == 1 else {1, size} for size in shared]
    chex.assert_shape(anchors, (..., *leading, 4), custom_message="anchors")
    chex.assert_equal(len(weights), 4, custom_message="weights")


def _centres_and_sizes(boxes):
    x_min, y_min, x_max, y_max = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    width, height = x_max - x_min, y_max - y_min
    return x_min + 0.5 * width, y_min + 0.5 * height, width, height
