"""Operators give the same with jit, without, and on four devices that each have an example.

The operators in `segjax.ops.convolution` have tests of their own.
"""

import jax
import numpy as np
from absl.testing import parameterized

from segjax import ops
from tests.variants import EXAMPLES, VARIANTS, VariantsCase

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ROI = {"output_size": 2, "spatial_scale": 0.5}


def example(seed):
    """Arrays of every kind that an operator takes, for images of 16 × 16 pixels."""
    rng = np.random.default_rng(seed)

    def boxes(*shape):
        low = rng.uniform(0, 8, (*shape, 2))
        return np.concatenate([low, low + rng.uniform(2, 8, (*shape, 2))], -1).astype(np.float32)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "boxes": boxes(12),
        "truth": boxes(3),
        "batch_boxes": boxes(2, 3) * np.float32(rng.choice([1, 12])),
        "deltas": normal(12, 4),
        "scores": rng.uniform(size=12).astype(np.float32),
        "valid": np.array([True, True, seed % 2 == 0]),
        "groups": rng.integers(0, 2, 12).astype(np.int32),
        "labels": rng.integers(-1, 2, 12).astype(np.int32),
        "matched": rng.integers(0, 3, 12).astype(np.int32),
        "maps": [normal(2, 8, 8, 3), normal(2, 4, 4, 3)],
        "image": rng.uniform(0, 255, (8, 9, 3)).astype(np.float32),
        "logits": normal(8, 9, 2),
        "masks": rng.uniform(size=(3, 16, 16)).astype(np.float32),
        "seed": np.uint32(seed),
    }


def compact(masks):
    return (255 * masks).astype(np.uint8)


CASES = {
    "box_area": lambda x: ops.box_area(x["boxes"]),
    "box_iou": lambda x: ops.box_iou(x["boxes"], x["truth"]),
    "clip_boxes": lambda x: ops.clip_boxes(x["boxes"], (9, 7)),
    "decode_boxes": lambda x: ops.decode_boxes(x["deltas"], x["boxes"], WEIGHTS),
    "dense_crf": lambda x: ops.dense_crf(x["logits"], x["image"], num_iterations=2, capacity=432),
    "encode_boxes": lambda x: ops.encode_boxes(x["truth"][:1], x["boxes"], WEIGHTS),
    "grid_anchors": lambda x: (
        ops.grid_anchors((3, 4), stride=8, sizes=(8.0,), aspect_ratios=(0.5, 2.0))
        + x["seed"].astype(np.float32)
    ),
    "match": lambda x: ops.match(
        x["boxes"], x["truth"], x["valid"], high=0.5, low=0.3, allow_low_quality=True
    ),
    "multilevel_roi_align": lambda x: ops.multilevel_roi_align(
        x["maps"],
        x["batch_boxes"],
        strides=(16, 32),
        output_size=2,
        sampling_ratio=2,
        aligned=True,
        level_rule="detectron2",
    ),
    "nms": lambda x: ops.nms(
        x["boxes"], x["scores"], iou_threshold=0.3, max_outputs=8, groups=x["groups"]
    ),
    "pyramid_levels": lambda x: ops.pyramid_levels(
        16 * x["boxes"], lowest=2, highest=5, rule="detectron2"
    ),
    "resize_bilinear": lambda x: ops.resize_bilinear(x["maps"][0], (5, 13), align_corners=False),
    "roi_align": lambda x: ops.roi_align(
        x["maps"][0], x["batch_boxes"], sampling_ratio=0, aligned=True, **ROI
    ),
    "roi_pool": lambda x: ops.roi_pool(x["maps"][0], x["batch_boxes"], **ROI),
    "roi_warp": lambda x: ops.roi_warp(x["maps"][0], x["batch_boxes"], **ROI),
    "sample": lambda x: ops.sample(
        jax.random.key(x["seed"]), x["labels"], size=6, positive_fraction=0.5
    ),
    "targets_from_boxes": lambda x: ops.targets_from_boxes(
        compact(x["masks"]), x["truth"], x["boxes"], x["matched"], size=4, binary=False
    ),
}
CONVOLUTIONS = {"convolution", "up_convolution"}


def test_the_cases_are_all_public_operators_on_arrays():
    assert set(CASES) == set(ops.__all__) - CONVOLUTIONS - {"base_anchors"}


class OperatorTest(VariantsCase):
    @VARIANTS
    @parameterized.named_parameters(CASES.items())
    def test_same_result(self, function):
        self.check(function, [example(seed) for seed in range(EXAMPLES)])
