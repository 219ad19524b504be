"""Boxes [x_min, y_min, x_max, y_max] in continuous pixel coordinates: area, overlap, coding.

A box's width is x_max − x_min, with nothing added. A box is empty if its width or height is not
above zero.
"""

import math

import chex
import jax
import jax.numpy as jnp

# Detectron's limit on dw and dh: a box may grow by at most 1000 / 16.
LOG_SCALE_LIMIT = math.log(1000 / 16)


def box_area(boxes) -> jax.Array:
    """Computes the area of each box; empty boxes have area 0.

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
      [N, M]; where a box is empty, the result is 0, never NaN.
    """
    chex.assert_shape(a, (None, 4), custom_message="a")
    chex.assert_shape(b, (None, 4), custom_message="b")
    a, b = a.T[:, :, None], b.T[:, None]
    return coordinate_iou(a, b)


def coordinate_iou(a, b):
    """Computes the intersection over union of boxes whose coordinates lie along the first axis.

    XLA vectorises this layout, with the boxes along a later axis.

    Args:
      a, b: [4, ...]; the other axes broadcast.

    Returns:
      [...]; where a box is empty, the result is 0, never NaN.
    """
    width = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
    height = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    union = _area(*a) + _area(*b) - intersection
    return jnp.where(intersection > 0, intersection / jnp.where(union > 0, union, 1), 0)


def _area(x_min, y_min, x_max, y_max):
    return jnp.maximum(x_max - x_min, 0) * jnp.maximum(y_max - y_min, 0)


def encode_boxes(boxes, anchors, weights) -> jax.Array:
    """Computes the deltas (dx, dy, dw, dh) that turn anchors into boxes, times the weights.

    Girshick et al., Rich Feature Hierarchies (CVPR 2014), appendix C: dx = (x − x_anchor) /
    w_anchor, where x and x_anchor are the centres, and dw = log(w / w_anchor).

    Args:
      boxes: [..., 4].
      anchors: [..., 4]; the leading axes broadcast. A side of a box or an anchor that is not above
        zero counts as one pixel, so that the deltas of invalid entries are finite.
      weights: weights of dx, dy, dw and dh, which bring the deltas to unit variance. The box head
        uses (10, 10, 5, 5).

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
    """Applies deltas to anchors, as the inverse of `encode_boxes`.

    The computation is in float32 for any dtype: bfloat16 coordinates are 4 pixels apart at 1000.
    dw and dh are at most log(1000 / 16), as in Detectron, detectron2 and torchvision.

    Args:
      deltas: [..., 4].
      anchors: [..., 4]; the leading axes broadcast ([N, 1, 4] with deltas [N, classes, 4]).
      weights: the weights given to `encode_boxes`.

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
    """Clips boxes to the image; a box that lies wholly outside becomes empty.

    Args:
      boxes: [..., 4].
      size: height and width of the image, as two numbers or an array [2] of integers or floats.

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
