"""Operators: pure functions on arrays with fixed shapes.

Each checks the shapes and dtypes of its arguments with chex, when it is called or traced. A wrong
argument raises an AssertionError that names it in brackets, such as "[boxes]".
"""

from segjax.ops.anchors import base_anchors, grid_anchors
from segjax.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes
from segjax.ops.convolution import convolution, up_convolution
from segjax.ops.dense_crf import dense_crf
from segjax.ops.masks import targets_from_boxes
from segjax.ops.matching import match, sample
from segjax.ops.nms import nms
from segjax.ops.resize import resize_bilinear
from segjax.ops.roi_align import multilevel_roi_align, pyramid_levels, roi_align
from segjax.ops.roi_pool import roi_pool, roi_warp

__all__ = [
    "base_anchors",
    "box_area",
    "box_iou",
    "clip_boxes",
    "convolution",
    "decode_boxes",
    "dense_crf",
    "encode_boxes",
    "grid_anchors",
    "match",
    "multilevel_roi_align",
    "nms",
    "pyramid_levels",
    "resize_bilinear",
    "roi_align",
    "roi_pool",
    "roi_warp",
    "sample",
    "targets_from_boxes",
    "up_convolution",
]
