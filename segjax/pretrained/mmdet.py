"""Mask R-CNN from mmdetection's model zoo, https://github.com/open-mmlab/mmdetection.

Follows the module names and settings of version 3.3, which are those of 2.x: `_base_/models/
mask-rcnn_r50_fpn.py`, `_base_/datasets/coco_instance.py` and the files in mask_rcnn/, all in the
package's configs/. Names here are those files' without schedule and data set. Checkpoints of 1.x
number the classes otherwise and do not fit. One rule differs: mmdetection also bounds how much a
box may shrink, to 16/1000 of its side.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from segjax.coco.classes import COCO_CATEGORIES, COCO_CLASSES
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.models.backbones.resnet import ResNet, resnet50, resnet101, resnext101
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import BatchNorm
from segjax.models.regions import RegionPooling
from segjax.pretrained.converted import Conversion
from segjax.pretrained.instance_tasks import coco_task, object_names
from segjax.pretrained.mapping import (
    IOHW,
    OIHW,
    Source,
    Table,
    length_of,
    reading_rgb,
    torch_convolution,
    torch_linear,
    within,
)
from segjax.pretrained.preprocess import FACEBOOK, IMAGENET, MSRA
from segjax.pretrained.torchvision import COUNTERS, resnet_table

FROZEN = partial(BatchNorm, epsilon=1e-5, frozen=True)
# The backbone, the convolution with the stride, and pixels; "caffe" is MSRA's, for BGR images.
BODIES = {
    "r50": (resnet50, "3x3", IMAGENET),
    "r101": (resnet101, "3x3", IMAGENET),
    "r50-caffe": (resnet50, "1x1", MSRA),
    "r101-caffe": (resnet101, "1x1", MSRA),
    "x101-32x8d": (resnext101, "3x3", FACEBOOK),
}
CLASSES = {80: COCO_CLASSES}
# OpenCV's bilinear interpolation, which skips pixels when shrinking.
SIZE = ResizeShortSide((800,), 1333, antialias=False)


def convert_mask_rcnn(
    state_dict: Mapping[str, np.ndarray], *, name: str, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Converts a Mask R-CNN with FPN on ResNet-50, ResNet-101 or ResNeXt-101-32×8d.

    Prediction resizes the shorter side to 800 pixels.

    Args:
      classes: names of the classes, background first; by default COCO's for 80 classes and numbered
        ones otherwise.
    """
    body = name.removeprefix("mmdet/mask-rcnn_").removesuffix("_fpn")
    make, stride_in, preprocess = BODIES[body]
    backbone = make(stride_in=stride_in, norm=FROZEN)
    outputs = length_of(state_dict, "roi_head.bbox_head.fc_cls.weight", 0, otherwise=81)
    model = MaskRCNN(
        outputs - 1,
        backbone=backbone,
        pooling=RegionPooling(sampling_ratio=0),
        norm=FROZEN,
    )
    table = _table(backbone)
    if preprocess != IMAGENET:
        table = reading_rgb(table, "params/backbone/stem/convolution/kernel")
    classes = object_names(outputs - 1, classes, CLASSES)
    task = coco_task(
        model,
        classes=classes,
        preprocess=preprocess,
        paste_rule="detectron2",
        category_ids=tuple(COCO_CATEGORIES) if classes == COCO_CLASSES else None,
        resize=SIZE,
    )
    return Conversion(model, table, state_dict, COUNTERS, preprocess, task)


def _table(backbone: ResNet) -> Table:
    table = within("backbone", resnet_table(backbone, prefix="backbone."))

    def convolution(ours: str, theirs: str):
        return torch_convolution(f"{ours}/convolution", theirs, bias=True)

    for i in range(4):
        table |= convolution(f"fpn/lateral{i + 2}", f"neck.lateral_convs.{i}.conv")
        table |= convolution(f"fpn/output{i + 2}", f"neck.fpn_convs.{i}.conv")
    table |= convolution("rpn/convolution1", "rpn_head.rpn_conv")
    table |= convolution("rpn/objectness", "rpn_head.rpn_cls")
    table |= convolution("rpn/deltas", "rpn_head.rpn_reg")
    boxes, masks = "roi_head.bbox_head", "roi_head.mask_head"
    table |= torch_linear("box_head/fc1", f"{boxes}.shared_fcs.0", map_size=(7, 7))
    table |= torch_linear("box_head/fc2", f"{boxes}.shared_fcs.1")
    table |= torch_linear("box_predictor/class_logits", f"{boxes}.fc_cls", background_last=True)
    table |= torch_linear("box_predictor/deltas", f"{boxes}.fc_reg")
    for i in range(4):
        table |= convolution(f"mask_head/convolution{i + 1}", f"{masks}.convs.{i}.conv")
    return table | {
        "params/mask_head/up_convolution/kernel": Source(f"{masks}.upsample.weight", IOHW),
        "params/mask_head/up_convolution/bias": Source(f"{masks}.upsample.bias"),
        "params/mask_head/logits/convolution/kernel": Source(f"{masks}.conv_logits.weight", OIHW),
        "params/mask_head/logits/convolution/bias": Source(f"{masks}.conv_logits.bias"),
    }
