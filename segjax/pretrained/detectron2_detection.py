"""Mask R-CNN from detectron2's model zoo, https://github.com/facebookresearch/detectron2.

Follows the module names of version 0.6 and the configurations in configs/COCO-InstanceSegmentation.
The pickles of the zoo hold {"model": {name: array}}.
"""

from collections.abc import Mapping
from functools import partial
from typing import cast

import numpy as np

from segjax.coco.classes import COCO_CATEGORIES, COCO_CLASSES
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.models.backbones.resnet import ResNet, resnet50, resnet101, resnext101
from segjax.models.mask_rcnn import MaskRCNN, Neck
from segjax.models.normalization import BatchNorm
from segjax.models.regions import RegionPooling
from segjax.models.rpn import ProposalConfig
from segjax.pretrained.converted import Conversion
from segjax.pretrained.detectron2 import detectron2_table, residual_table
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
from segjax.pretrained.preprocess import FACEBOOK, MSRA

FROZEN = partial(BatchNorm, epsilon=1e-5, frozen=True)
BODIES = {
    "R_50": (resnet50, "1x1", MSRA),
    "R_101": (resnet101, "1x1", MSRA),
    "X_101_32x8d": (resnext101, "3x3", FACEBOOK),
}
CITYSCAPES = (
    *("background", "person", "rider", "car", "truck", "bus", "train", "motorcycle"),
    "bicycle",
)
CITYSCAPES_SIZE = {"resize": ResizeShortSide((1024,), 2048), "buckets": ((1024, 2048),)}
CLASSES = {80: COCO_CLASSES, 8: CITYSCAPES}
# Ignored: pixel mean and deviation, anchors, and counters of batches.
OTHERS = r"^pixel_(mean|std)$|anchor_generator|\.num_batches_tracked$"


def convert_mask_rcnn(
    state_dict: Mapping[str, np.ndarray], *, name: str, classes: tuple[str, ...] | None = None
) -> Conversion:
    """Converts a Mask R-CNN of the model zoo: R50, R101 or X101, with FPN, C4 or DC5.

    Prediction resizes the shorter side to 800 pixels (COCO) or 1024 (Cityscapes).

    Args:
      classes: names of the classes, background first. By default COCO's for 80 classes,
        Cityscapes' for 8, and numbered ones otherwise.
    """
    body, _, neck = name.removeprefix("detectron2/mask_rcnn_").rpartition("_")
    neck = cast(Neck, neck.lower())
    make, stride_in, preprocess = BODIES[body]
    backbone = make(stride_in=stride_in, norm=FROZEN)
    if neck == "c4":
        backbone = backbone.clone(num_stages=3)
    num_classes = length_of(state_dict, "roi_heads.box_predictor.cls_score.weight", 0, otherwise=81)
    model = MaskRCNN(
        num_classes - 1,
        backbone=backbone,
        neck=neck,
        pooling=RegionPooling(sampling_ratio=0),
        proposals=ProposalConfig(pre_nms=1000 if neck == "fpn" else 6000),
        norm=FROZEN,
    )
    table = _mask_rcnn_table(neck, backbone)
    classes = object_names(num_classes - 1, classes, CLASSES)
    size = CITYSCAPES_SIZE if classes == CITYSCAPES else {}
    task = coco_task(
        model,
        classes=classes,
        preprocess=preprocess,
        paste_rule="detectron2",
        category_ids=tuple(COCO_CATEGORIES) if classes == COCO_CLASSES else None,
        **size,
    )
    return Conversion(model, table, state_dict, OTHERS, preprocess, task)


def _mask_rcnn_table(neck: Neck, resnet: ResNet) -> Table:
    body = "backbone.bottom_up." if neck == "fpn" else "backbone."
    table = within("backbone", detectron2_table(resnet, prefix=body))
    table = reading_rgb(table, "params/backbone/stem/convolution/kernel")
    rpn, heads = "proposal_generator.rpn_head", "roi_heads"
    if neck == "fpn":
        for i in (2, 3, 4, 5):
            for kind in ("lateral", "output"):
                theirs = f"backbone.fpn_{kind}{i}"
                table |= torch_convolution(f"fpn/{kind}{i}/convolution", theirs, bias=True)
    table |= torch_convolution("rpn/convolution1/convolution", f"{rpn}.conv", bias=True)
    table |= torch_convolution("rpn/objectness/convolution", f"{rpn}.objectness_logits", bias=True)
    table |= torch_convolution("rpn/deltas/convolution", f"{rpn}.anchor_deltas", bias=True)
    if neck == "c4":
        table |= within("box_head", residual_table(3, "block{}", f"{heads}.res5."))
    else:
        table |= torch_linear("box_head/fc1", f"{heads}.box_head.fc1", map_size=(7, 7))
        table |= torch_linear("box_head/fc2", f"{heads}.box_head.fc2")
        for i in (1, 2, 3, 4):
            ours, theirs = f"mask_head/convolution{i}/convolution", f"{heads}.mask_head.mask_fcn{i}"
            table |= torch_convolution(ours, theirs, bias=True)
    predictor, masks = f"{heads}.box_predictor", f"{heads}.mask_head"
    logits = torch_linear(
        "box_predictor/class_logits", f"{predictor}.cls_score", background_last=True
    )
    table |= logits | torch_linear("box_predictor/deltas", f"{predictor}.bbox_pred")
    return table | {
        "params/mask_head/up_convolution/kernel": Source(f"{masks}.deconv.weight", IOHW),
        "params/mask_head/up_convolution/bias": Source(f"{masks}.deconv.bias"),
        "params/mask_head/logits/convolution/kernel": Source(f"{masks}.predictor.weight", OIHW),
        "params/mask_head/logits/convolution/bias": Source(f"{masks}.predictor.bias"),
    }
