"""Box areas, overlaps and coding against hand-computed answers and a slow oracle."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import boxes as operators

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
box_area, box_iou, clip_boxes, encode_boxes, decode_boxes = (
    jax.jit(getattr(operators, name))
    for name in ("box_area", "box_iou", "clip_boxes", "encode_boxes", "decode_boxes")
)


def random_boxes(rng, *shape):
    low = rng.uniform(-50, 500, (*shape, 2))
    return np.concatenate((low, low + rng.uniform(1, 300, (*shape, 2))), -1).astype(np.float32)


def iou_oracle(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    intersection = max(sides[0], 0) * max(sides[1], 0)
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (a, b)]
    return intersection / (sum(areas) - intersection) if intersection > 0 else 0.0


def test_area_is_width_times_height_without_plus_one_and_0_for_empty_boxes():
    boxes = jnp.array([[1, 2, 4, 4.5], [0, 0, 0, 0], [5, 5, 3, 3], [0, 0, 9, 0]], jnp.float32)
    np.testing.assert_array_equal(box_area(boxes), [7.5, 0, 0, 0])
    np.testing.assert_array_equal(box_area(boxes[None, :, None]), [[[7.5], [0], [0], [0]]])


def test_iou_by_hand():
    a = jnp.array([[0, 0, 4, 4]], jnp.float32)
    b = jnp.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3]], jnp.float32)
    np.testing.assert_allclose(box_iou(a, b), [[1, 1 / 3, 0, 1 / 4]], rtol=1e-7)


def test_iou_equals_the_oracle_and_is_symmetric():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 20)
    expected = [[iou_oracle(x, y) for y in b.astype(float)] for x in a.astype(float)]
    assert np.count_nonzero(expected) > 50
    np.testing.assert_allclose(box_iou(a, b), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(box_iou(b, a), box_iou(a, b).T)


def test_empty_boxes_have_iou_0_and_finite_gradients():
    boxes = jnp.array([[0, 0, 0, 0], [0, 0, 0, 9], [5, 5, 3, 3], [0, 0, 9, 9]], jnp.float32)
    np.testing.assert_array_equal(box_iou(boxes, boxes), np.diag([0.0, 0, 0, 1]))
    assert np.isfinite(jax.jit(jax.grad(lambda x: box_iou(x, x[::-1]).sum()))(boxes)).all()
    assert box_iou(boxes[:0], boxes).shape == (0, 4)


def test_deltas_by_hand():
    anchor, box = jnp.array([0.0, 0, 10, 20]), jnp.array([10.0, 0, 30, 10])
    # Centres (5, 10) and (20, 5): 1.5 widths to the right, a quarter of the height up.
    expected = [15, -2.5, 5 * math.log(2), -5 * math.log(2)]
    deltas = encode_boxes(box, anchor, WEIGHTS)
    np.testing.assert_allclose(deltas, expected, rtol=1e-6)
    np.testing.assert_allclose(decode_boxes(deltas, anchor, WEIGHTS), box, atol=1e-5)


def test_decoding_inverts_encoding_with_broadcast_anchors():
    rng = np.random.default_rng(1)
    boxes, anchors = random_boxes(rng, 40, 3), random_boxes(rng, 40, 1)
    # Of the anchors' size or less, so that the limit on the scale does not matter.
    boxes[..., 2:] = boxes[..., :2] + (boxes - np.roll(boxes, 2, -1))[..., 2:] / 10
    decoded = decode_boxes(encode_boxes(boxes, anchors, WEIGHTS), anchors, WEIGHTS)
    assert decoded.shape == (40, 3, 4)
    np.testing.assert_allclose(decoded, boxes, atol=2e-3)


def test_scales_are_limited_above_but_not_below():
    deltas = jnp.array([[0, 0, 1e4, 6], [0, 0, -8, 0]], jnp.float32)
    decoded = decode_boxes(deltas, jnp.array([[0, 0, 16, 16]], jnp.float32), (1.0, 1.0, 1.0, 1.0))
    np.testing.assert_allclose(decoded[0], [-492, -492, 508, 508], rtol=1e-6)
    width = 16 * math.exp(-8)
    np.testing.assert_allclose(decoded[1, 2] - decoded[1, 0], width, rtol=1e-3)


def test_bfloat16_deltas_are_decoded_in_float32():
    deltas = jnp.array([[0.5, 0.25, 0, 0]], jnp.bfloat16)
    decoded = decode_boxes(deltas, jnp.array([[1001, 1001, 1003, 1005]], jnp.float32), (1, 1, 1, 1))
    assert decoded.dtype == jnp.float32
    np.testing.assert_array_equal(decoded, [[1002, 1002, 1004, 1006]])


def test_deltas_of_empty_boxes_are_finite_and_so_are_their_gradients():
    boxes = jnp.array([[0, 0, 0, 0], [0, 0, 0, 0], [3, 3, 9, 9]], jnp.float32)
    anchors = jnp.array([[3, 3, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]], jnp.float32)
    assert np.isfinite(encode_boxes(boxes, anchors, WEIGHTS)).all()
    for code in (encode_boxes, decode_boxes):
        total = jax.grad(lambda *x, code=code: code(*x, WEIGHTS).sum(), (0, 1))
        assert np.isfinite(jax.jit(total)(boxes, anchors)).all()


@pytest.mark.parametrize(
    "size",
    [(8, 10), jnp.array([8, 10], jnp.int32), jnp.array([8, 10], jnp.float32)],
    ids=["ints", "integer array", "float array"],
)
def test_clipping_puts_boxes_inside_height_and_width(size):
    boxes = jnp.array([[[-1, -2, 99, 99], [2, 3, 4, 5]], [[20, 1, 30, 2], [0, 0, 10, 8]]])
    expected = [[[0, 0, 10, 8], [2, 3, 4, 5]], [[10, 1, 10, 2], [0, 0, 10, 8]]]
    np.testing.assert_array_equal(clip_boxes(boxes.astype(jnp.float32), size), expected)
