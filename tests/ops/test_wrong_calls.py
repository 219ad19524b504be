"""A wrong shape or dtype stops an operator when it is traced, and the message names the argument.

The operators in `segjax.ops.convolution` have tests of their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from segjax import ops
from tests.wrong_calls import KEY, calls, flags, floats, integers, trace

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MASKS = jax.ShapeDtypeStruct((3, 8, 8), jnp.uint8)
MAPS = [floats(2, 16, 16, 5), floats(2, 8, 8, 5)]
roi_align = partial(ops.roi_align, spatial_scale=0.5, sampling_ratio=2, aligned=True)
multilevel_roi_align = partial(
    ops.multilevel_roi_align,
    strides=(4, 8),
    output_size=2,
    sampling_ratio=2,
    aligned=True,
    level_rule="detectron2",
)

# For each: the function, arguments that are right, and wrong ones in their place.
TABLE = {
    "box_area": (ops.box_area, {"boxes": floats(3, 4)}, [("boxes", floats(3, 5))]),
    "box_iou": (
        ops.box_iou,
        {"a": floats(3, 4), "b": floats(2, 4)},
        [("a", floats(4)), ("a", floats(3, 5)), ("b", floats(1, 2, 4)), ("b", floats(2, 3))],
    ),
    "clip_boxes": (
        ops.clip_boxes,
        {"boxes": floats(3, 4), "size": integers(2)},
        [("boxes", floats(4, 3)), ("size", integers(3)), ("size", (4, 5, 3))],
    ),
    "decode_boxes": (
        ops.decode_boxes,
        {"deltas": floats(3, 7, 4), "anchors": floats(3, 1, 4), "weights": WEIGHTS},
        [
            ("deltas", floats(3, 7, 5)),
            ("anchors", floats(3, 1, 5)),
            ("anchors", floats(2, 1, 4)),
            ("anchors", floats()),
            ("weights", (1.0, 1.0)),
        ],
    ),
    "dense_crf": (
        ops.dense_crf,
        {"logits": floats(5, 6, 2), "image": floats(5, 6, 3), "valid": flags(5, 6)},
        [("logits", integers(5, 6, 2)), ("valid", floats(5, 6))],
    ),
    "encode_boxes": (
        ops.encode_boxes,
        {"boxes": floats(3, 4), "anchors": floats(3, 4), "weights": WEIGHTS},
        [
            ("boxes", floats(3, 5)),
            ("anchors", floats(2, 4)),
            ("anchors", floats(3, 2)),
            ("weights", (1.0, 1.0, 1.0)),
        ],
    ),
    "grid_anchors": (
        partial(ops.grid_anchors, sizes=(8.0,), aspect_ratios=(1.0,)),
        {"feature_size": (4, 5), "stride": 8},
        [("feature_size", (4, 5, 3)), ("stride", (8, 8, 8))],
    ),
    "match": (
        partial(ops.match, high=0.7, low=0.3, allow_low_quality=True),
        {"candidates": floats(5, 4), "truth": floats(3, 4), "valid": flags(3)},
        [
            ("candidates", floats(5, 5)),
            ("candidates", floats(1, 5, 4)),
            ("truth", floats(3, 2)),
            ("valid", flags(5)),
            ("valid", floats(3)),
        ],
    ),
    "multilevel_roi_align": (
        multilevel_roi_align,
        {"pyramid": MAPS, "boxes": floats(2, 3, 4)},
        [
            ("pyramid", [MAPS[0], floats(8, 8, 5)]),
            ("pyramid", [MAPS[0], floats(1, 8, 8, 5)]),
            ("pyramid", [MAPS[0], floats(2, 8, 8, 6)]),
            ("pyramid", [MAPS[0], jax.ShapeDtypeStruct((2, 8, 8, 5), jnp.bfloat16)]),
            ("boxes", floats(2, 3, 5)),
        ],
    ),
    "nms": (
        partial(ops.nms, iou_threshold=0.5, max_outputs=2),
        {"boxes": floats(5, 4), "scores": floats(5), "valid": flags(5), "groups": integers(5)},
        [
            ("boxes", floats(4, 5)),
            ("boxes", floats(1, 5, 4)),
            ("scores", floats(5, 1)),
            ("scores", floats(4)),
            ("valid", flags(4)),
            ("valid", integers(5)),
            ("groups", integers(4)),
            ("groups", floats(5)),
        ],
    ),
    "pyramid_levels": (
        partial(ops.pyramid_levels, lowest=2, highest=5, rule="detectron2"),
        {"boxes": floats(2, 3, 4)},
        [("boxes", floats(2, 3, 5)), ("boxes", floats())],
    ),
    "resize_bilinear": (
        partial(ops.resize_bilinear, align_corners=True),
        {"x": floats(2, 4, 5, 3), "size": (8, 9)},
        [("x", floats(4, 5, 3)), ("x", integers(2, 4, 5, 3)), ("size", (2, 8, 9))],
    ),
    "roi_align": (
        roi_align,
        {"features": floats(2, 8, 8, 5), "boxes": floats(2, 3, 4), "output_size": 2},
        [("features", floats(8, 8, 5)), ("features", integers(2, 8, 8, 5))],
    ),
    "roi_pool": (
        partial(ops.roi_pool, spatial_scale=0.5),
        {"features": floats(2, 8, 8, 5), "boxes": floats(2, 3, 4), "output_size": (2, 3)},
        [
            ("features", floats(8, 8, 5)),
            ("boxes", floats(1, 3, 4)),
            ("boxes", floats(2, 4)),
            ("output_size", (2, 3, 5)),
        ],
    ),
    "roi_warp": (
        partial(ops.roi_warp, spatial_scale=0.5),
        {"features": floats(2, 8, 8, 5), "boxes": floats(2, 3, 4), "output_size": (2, 3)},
        [
            ("features", floats(8, 8, 5)),
            ("boxes", floats(1, 3, 4)),
            ("boxes", floats(2, 3, 5)),
            ("output_size", (2, 3, 5)),
        ],
    ),
    "sample": (
        partial(ops.sample, size=4, positive_fraction=0.5),
        {"key": KEY, "labels": integers(9)},
        [("labels", integers(1, 9)), ("labels", floats(9))],
    ),
    "targets_from_boxes": (
        partial(ops.targets_from_boxes, size=4),
        {
            "masks": MASKS,
            "mask_boxes": floats(3, 4),
            "boxes": floats(5, 4),
            "matched": integers(5),
        },
        [
            ("masks", jax.ShapeDtypeStruct((3, 8), jnp.uint8)),
            ("masks", floats(3, 8, 8)),
            ("mask_boxes", floats(2, 4)),
            ("boxes", floats(5, 5)),
            ("matched", integers(3)),
            ("matched", floats(5)),
        ],
    ),
}
CONVOLUTIONS = {"convolution", "up_convolution"}


def test_the_table_has_every_public_operator_on_arrays():
    assert set(TABLE) == set(ops.__all__) - CONVOLUTIONS - {"base_anchors"}


@pytest.mark.parametrize("name", TABLE)
def test_the_right_call_is_traced(name):
    function, arguments, _ = TABLE[name]
    trace(function, arguments)


@pytest.mark.parametrize(("function", "arguments", "named"), calls(TABLE))
def test_a_wrong_call_names_the_argument(function, arguments, named):
    with pytest.raises(AssertionError, match=rf"\[{named}\]"):
        trace(function, arguments)


def test_a_wrong_call_with_values_names_the_argument_as_well():
    with pytest.raises(AssertionError, match=r"has shape \(3, 5\) but expected .* \[boxes\]"):
        ops.box_area(np.zeros((3, 5), np.float32))


def test_sizes_may_be_open_in_exported_functions_of_boxes():
    number, classes = export.symbolic_shape("number, classes")
    deltas = jax.ShapeDtypeStruct((number, classes, 4), jnp.float32)
    anchors = jax.ShapeDtypeStruct((number, 1, 4), jnp.float32)

    def boxes(deltas, anchors):
        return ops.clip_boxes(ops.decode_boxes(deltas, anchors, WEIGHTS), (20, 30))

    exported = export.export(jax.jit(boxes))(deltas, anchors)
    rng = np.random.default_rng(0)
    values = [rng.normal(size=size).astype(np.float32) for size in ((3, 2, 4), (3, 1, 4))]
    np.testing.assert_allclose(exported.call(*values), boxes(*values), atol=1e-5)
    with pytest.raises(AssertionError, match=r"\[anchors\]"):
        export.export(jax.jit(boxes))(deltas, jax.ShapeDtypeStruct((classes, 1, 4), jnp.float32))
