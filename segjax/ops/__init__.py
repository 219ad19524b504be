"""Operators: pure functions on arrays with fixed shapes.

They assert the shapes and dtypes of their arguments with chex when they are called or traced. A
wrong one raises an AssertionError that names the argument in brackets, such as "[boxes]".
"""

from segjax.ops.anchors import base_anchors, grid_anchors
from segjax.ops.boxes import box_area, box_iou, clip_boxes, decode_boxes, encode_boxes
from segjax.ops.convolution import convolution, linen_convolution, up_convolution
from segjax.ops.dense_crf import dense_crf
from segjax.ops.masks import paste_masks, targets_from_boxes, targets_from_images
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
    "linen_convolution",
    "match",
    "multilevel_roi_align",
    "nms",
    "paste_masks",
    "pyramid_levels",
    "resize_bilinear",
    "roi_align",
    "roi_pool",
    "roi_warp",
    "sample",
    "targets_from_boxes",
    "targets_from_images",
    "up_convolution",
]
