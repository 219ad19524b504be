"""torchvision's Mask R-CNN, https://pytorch.org/vision.

Follows the module names of version 0.28.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from segjax.coco.classes import COCO_CATEGORIES
from segjax.data.augmentation.instance import ResizeShortSide
from segjax.models.backbones.resnet import resnet50
from segjax.models.detections import DetectionConfig
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import BatchNorm
from segjax.models.regions import RegionPooling
from segjax.models.rpn import Anchors, ProposalConfig
from segjax.pretrained.converted import Conversion
from segjax.pretrained.instance_tasks import coco_task, object_names
from segjax.pretrained.mapping import (
    IOHW,
    OIHW,
    Source,
    Table,
    length_of,
    torch_convolution,
    torch_layer,
    torch_linear,
    within,
)
from segjax.pretrained.preprocess import IMAGENET
from segjax.pretrained.torchvision import COUNTERS, resnet_table

# torchvision's classes are COCO's ids 1 to 90; unused ids are never predicted.
CLASSES = ("background", *(COCO_CATEGORIES.get(index, f"unused {index}") for index in range(1, 91)))


@dataclass(frozen=True)
class Resize:
    """Resizes an image as torchvision's detectors do: in float32, without rounding the pixels."""

    rule: ResizeShortSide = ResizeShortSide((800,), 1333, rounding="down", antialias=False)

    def __call__(self, example: dict, rng: None) -> dict:
        return self.rule({"image": example["image"].astype(np.float32)}, rng)


# The published weights of v1 have the names of torchvision 0.3, which newer versions rename.
OLD_NAMES = (
    (r"(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    *(
        (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"roi_heads.mask_head.{i}.0.")
        for i in range(4)
    ),
)


def convert_maskrcnn(
    state_dict: Mapping[str, np.ndarray],
    *,
    name: str,
    classes: tuple[str, ...] | None = None,
    epsilon: float | None = None,
) -> Conversion:
    """Converts Mask R-CNN on ResNet-50 with FPN: v1 (the recipe of 2017) or "_v2" (of 2022).

    The classes of COCO weights are numbered by COCO's category ids, 1 … 90.

    Args:
      classes: names of the classes, background first; COCO's by default if there are 91.
      epsilon: epsilon of the backbone's frozen norms. None fits the published weights: 0 for v1,
        1e-5 for v2. A v1 model trained with `weights=None` has 1e-5.
    """
    v2 = name.endswith("_v2")
    state_dict = {_renamed(key): array for key, array in state_dict.items()}
    if epsilon is None:
        epsilon = 1e-5 if v2 else 0.0
    num_classes = length_of(state_dict, "roi_heads.box_predictor.cls_score.weight", 0, otherwise=91)
    norm = _frozen(1e-5) if v2 else None
    model = MaskRCNN(
        num_classes - 1,
        backbone=resnet50(norm=_frozen(epsilon)),
        fpn_norm=norm,
        anchors=Anchors(rounded=True, stride="image"),
        rpn_convolutions=2 if v2 else 1,
        box_convolutions=4 if v2 else 0,
        box_fully_connected=1 if v2 else 2,
        head_norm=norm,
        pooling=RegionPooling(aligned=False, level_rule="torchvision"),
        proposals=ProposalConfig(min_size=1e-3),
        detections=DetectionConfig(min_size=1e-2),
    )
    table = maskrcnn_table(v2=v2)
    names = object_names(num_classes - 1, classes, {90: CLASSES})
    task = coco_task(
        model,
        classes=names,
        category_ids=tuple(range(1, 91)) if names == CLASSES else None,
        preprocess=IMAGENET,
        paste_rule="torchvision",
        resize=Resize(),
    )
    return Conversion(model, table, state_dict, COUNTERS, IMAGENET, task)


def maskrcnn_table(*, v2: bool) -> Table:
    """Returns the entries of Mask R-CNN with FPN on ResNet-50."""
    table = within("backbone", resnet_table(resnet50(), prefix="backbone.body."))
    for i in range(4):
        for ours, theirs in (("lateral", "inner"), ("output", "layer")):
            table |= _layer(f"fpn/{ours}{i + 2}", f"backbone.fpn.{theirs}_blocks.{i}", norm=v2)
    for i in range(2 if v2 else 1):
        table |= _layer(f"rpn/convolution{i + 1}", f"rpn.head.conv.{i}", norm=False)
    table |= torch_convolution("rpn/objectness/convolution", "rpn.head.cls_logits", bias=True)
    table |= torch_convolution("rpn/deltas/convolution", "rpn.head.bbox_pred", bias=True)
    box_head, map_size = "roi_heads.box_head", (7, 7)
    if v2:
        for i in range(4):
            table |= _layer(f"box_head/convolution{i + 1}", f"{box_head}.{i}", norm=True)
        table |= torch_linear("box_head/fc1", f"{box_head}.5", map_size=map_size)
    else:
        table |= torch_linear("box_head/fc1", f"{box_head}.fc6", map_size=map_size)
        table |= torch_linear("box_head/fc2", f"{box_head}.fc7")
    predictor = "roi_heads.box_predictor"
    table |= torch_linear("box_predictor/class_logits", f"{predictor}.cls_score")
    # The background's four deltas and mask are unused, and skipped.
    table |= torch_linear("box_predictor/deltas", f"{predictor}.bbox_pred", skipped_outputs=4)
    for i in range(4):
        table |= _layer(f"mask_head/convolution{i + 1}", f"roi_heads.mask_head.{i}", norm=v2)
    masks = "roi_heads.mask_predictor"
    return table | {
        "params/mask_head/up_convolution/kernel": Source(f"{masks}.conv5_mask.weight", IOHW),
        "params/mask_head/up_convolution/bias": Source(f"{masks}.conv5_mask.bias"),
        "params/mask_head/logits/convolution/kernel": Source(
            f"{masks}.mask_fcn_logits.weight", OIHW, skipped_outputs=1
        ),
        "params/mask_head/logits/convolution/bias": Source(
            f"{masks}.mask_fcn_logits.bias", skipped_outputs=1
        ),
    }


@cache  # the same norm object makes models equal, so that they are traced once
def _frozen(epsilon: float):
    return partial(BatchNorm, epsilon=epsilon, frozen=True)


def _renamed(key: str) -> str:
    """Returns the current name of an array; names that are current stay as they are."""
    for old, new in OLD_NAMES:
        key = re.sub(f"^{old}", new, key)
    return key


def _layer(ours: str, theirs: str, *, norm: bool) -> Table:
    """Returns the entries of a `Conv2dNormActivation` with batch norm, or with a bias."""
    if norm:
        return torch_layer(ours, f"{theirs}.0", f"{theirs}.1")
    return torch_convolution(f"{ours}/convolution", f"{theirs}.0", bias=True)
