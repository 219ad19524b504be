"""Mask R-CNN: He, Gkioxari, Dollár, Girshick, ICCV 2017 (arXiv:1703.06870).

Each stage is a method or function on arrays, to be run, tested or replaced alone: `pyramid` →
`rpn_outputs` → `segjax.models.rpn.propose` → `box_outputs` → `segjax.models.detections.detect` →
`mask_outputs` → `refine`. Calling the model runs them all. Training samples anchors and regions
between the stages; see `segjax.tasks.instance`.

A subclass adds a head on the regions in three places: `setup` makes it, `mask_outputs` runs it and
`refine` lets it change the detections. See `experiments/extending/mask_scoring_rcnn.py`.
"""

from functools import partial
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax.numpy as jnp

from segjax.models.backbones.registry import BackboneName, backbone_of, make_backbone
from segjax.models.backbones.resnet import ResNet
from segjax.models.detections import DetectionConfig, detect
from segjax.models.fpn import FeaturePyramid
from segjax.models.groups import over_groups
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm, is_over_batch
from segjax.models.regions import RegionPooling
from segjax.models.roi_heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskLoss,
    MLPMaskHead,
    ResidualHead,
    mask_probabilities,
)
from segjax.models.rpn import Anchors, ProposalConfig, RPNHead, propose

Neck = Literal["fpn", "c4", "c5", "dc5"]
MaskNetwork = Literal["fcn", "mlp"]
ONE_LEVEL = Anchors(sizes=((32.0, 64.0, 128.0, 256.0, 512.0),))
# Number of an image's regions whose masks are computed together. An image often fills 8 to 40 of
# 128 places for positive regions: larger groups are mostly empty, smaller ones underuse a device.
MASK_GROUP = 16


class MaskRCNN(Network):
    """Mask R-CNN on a ResNet: 44 million parameters with ResNet-50 and FPN for COCO.

    Parameters: "backbone", "fpn", "rpn", "box_head", "box_predictor", "mask_head"; with "c4" the
    "box_head" is the ResNet's last stage, and the mask head shares it.

    Attributes:
      num_classes: number of classes, the background not counted.
      backbone: the name of a ResNet, or a module, which keeps its own norm and dtype. "fpn" reads
        its "stage1" … "stage4"; "c4" needs a ResNet of three stages.
      neck: "fpn", the pyramid; "c4", one map of stride 16, and the last stage on each region;
        "c5", one map of stride 32 (table 2d); "dc5", one map of stride 16, atrous (detectron2).
      fpn_features: channels of the pyramid.
      fpn_norm: norm of the pyramid's convolutions; None gives biases instead.
      anchors: None takes one size for each level of a pyramid, and all five on a single map.
      rpn_convolutions: number of the RPN's 3×3 convolutions: 1, or 2 in torchvision's v2 and
        detectron2's new baselines.
      box_convolutions, box_fully_connected: numbers of the box head's layers: 0 and 2, or 4 and 1.
      fc_features: channels of the fully connected layers.
      head_features: channels of the heads' convolutions.
      head_norm: norm of the box and mask heads' convolutions; None gives biases instead.
      class_agnostic_boxes: whether a region has one box for all classes.
      mask_network: "fcn", or "mlp" (table 2e).
      mask_convolutions: number of the FCN's 3×3 convolutions; "c4" has none.
      mask_loss: "sigmoid" for each class, or "softmax" over the classes (table 2b).
      class_agnostic_masks: whether a region has one mask for all classes (section 4.2; 29.7 instead
        of 30.3 AP).
      pooling: how a region's features are read from the maps.
      box_resolution, mask_resolution: side of a region's features in the box and the mask head;
        with "c4" both have box_resolution.
      proposals, detections: how prediction chooses them.
      norm: norm of a named backbone; the papers freeze its statistics.
      dtype: computation dtype; parameters, boxes and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "resnet50"
    neck: Neck = "fpn"
    fpn_features: int = 256
    fpn_norm: Norm | None = None
    anchors: Anchors | None = None
    rpn_convolutions: int = 1
    box_convolutions: int = 0
    box_fully_connected: int = 2
    fc_features: int = 1024
    head_features: int = 256
    head_norm: Norm | None = None
    class_agnostic_boxes: bool = False
    mask_network: MaskNetwork = "fcn"
    mask_convolutions: int = 4
    mask_loss: MaskLoss = "sigmoid"
    class_agnostic_masks: bool = False
    pooling: RegionPooling = RegionPooling()
    box_resolution: int = 7
    mask_resolution: int = 14
    proposals: ProposalConfig = ProposalConfig()
    detections: DetectionConfig = DetectionConfig()
    norm: Norm = partial(BatchNorm, frozen=True)
    dtype: Any = None

    def __post_init__(self):
        for name, choices in (
            ("neck", Neck),
            ("mask_network", MaskNetwork),
            ("mask_loss", MaskLoss),
        ):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(f"{name} is one of {get_args(choices)}; got {value!r}")
        if self.mask_loss == "softmax" and self.class_agnostic_masks:
            raise ValueError("a softmax over the classes has no class-agnostic mask")
        stages = 3 if self.neck == "c4" else 4
        backbone = self.backbone
        if isinstance(backbone, str):
            backbone = make_backbone(backbone, norm=self.norm, dtype=self.dtype)
            if isinstance(backbone, ResNet):
                backbone = backbone.clone(num_stages=stages)
            self.backbone = backbone
        if isinstance(backbone, ResNet) and backbone.num_stages != stages:
            raise ValueError(
                f"the ResNet of neck {self.neck!r} has num_stages={stages}; got {backbone!r}"
            )
        if self.neck == "c4" and getattr(backbone, "block", None) != "bottleneck":
            raise ValueError(f"neck 'c4' needs a ResNet with bottlenecks; got {backbone!r}")
        if self.anchors is None:
            self.anchors = Anchors() if self.neck == "fpn" else ONE_LEVEL
        super().__post_init__()

    def setup(self):
        assert self.anchors is not None  # by `__post_init__`
        dtype, norm = self.dtype, self.head_norm
        if self.neck == "fpn":
            self.fpn = FeaturePyramid(self.fpn_features, norm=self.fpn_norm, dtype=dtype)
        self.rpn = RPNHead(
            self.anchors.per_position, convolutions=self.rpn_convolutions, dtype=dtype
        )
        if self.neck == "c4":
            resnet = backbone_of(self)
            self.box_head = ResidualHead(
                blocks=resnet.stage_sizes[3],
                width=resnet.width,
                stride_in=resnet.stride_in,
                groups=resnet.groups,
                group_width=resnet.group_width,
                norm=resnet.norm,
                dtype=dtype,
            )
        else:
            self.box_head = BoxHead(
                convolutions=self.box_convolutions,
                fully_connected=self.box_fully_connected,
                features=self.head_features,
                fc_features=self.fc_features,
                norm=norm,
                dtype=dtype,
            )
        self.box_predictor = BoxPredictor(
            self.num_classes, class_agnostic=self.class_agnostic_boxes, dtype=dtype
        )
        outputs = 1 if self.class_agnostic_masks else self.num_classes
        outputs += self.mask_loss == "softmax"
        if self.mask_network == "mlp":
            self.mask_head = MLPMaskHead(
                outputs,
                fc_features=self.fc_features,
                resolution=2 * self.mask_resolution,
                dtype=dtype,
            )
        else:
            self.mask_head = MaskHead(
                outputs,
                convolutions=0 if self.neck == "c4" else self.mask_convolutions,
                features=self.head_features,
                norm=norm,
                dtype=dtype,
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Returns the strides of `pyramid`'s maps."""
        if self.neck == "fpn":
            return (4, 8, 16, 32, 64)
        return (32,) if self.neck == "c5" else (16,)

    def pyramid(self, images, train: bool = False) -> list:
        """Computes the maps that all other stages read: P2 … P6, or a single map.

        Args:
          images: [batch, height, width, channels] of a float dtype.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone, options = backbone_of(self), {}
        if self.neck == "dc5":
            options["output_stride"] = 16
            if isinstance(backbone, ResNet):
                # All blocks run at rate 2, as in detectron2; without this the first would not.
                options["multi_grid"] = (1,) * backbone.stage_sizes[3]
        maps = backbone(images, train=train, **options)
        if self.neck != "fpn":
            return [maps["features"]]
        stages = [f"stage{i}" for i in (1, 2, 3, 4)]
        if missing := ", ".join(name for name in stages if name not in maps):
            kind = type(backbone).__name__
            raise ValueError(f"neck 'fpn' reads stage1 … stage4; {kind} lacks {missing}")
        return self.fpn([maps[name] for name in stages], train)

    def rpn_outputs(self, levels, *, image_size: tuple[int, int], train: bool = False):
        """Computes three lists with each level's objectness, box deltas and anchors.

        Args:
          image_size: height and width of the padded images.
        """
        assert self.anchors is not None  # by `__post_init__`
        objectness, deltas = self.rpn(levels, train)
        sizes = [level.shape[1:3] for level in levels]
        anchors = self.anchors.of(sizes, strides=self.strides, image_size=image_size)
        return objectness, deltas, anchors

    def box_outputs(self, levels, boxes, train: bool = False):
        """Classifies and moves boxes [batch, regions, 4].

        Returns:
          Logits [batch, regions, 1 + classes], background first, and box deltas [batch, regions,
          classes or 1, 4].
        """
        x = self.box_head(self._region_features(levels, boxes, self.box_resolution), train)
        if self.neck == "c4":
            x = jnp.mean(x, axis=(1, 2))
        logits, deltas = self.box_predictor(x)
        leading = boxes.shape[:2]
        return logits.reshape(*leading, -1), deltas.reshape(*leading, -1, 4)

    def mask_outputs(self, levels, regions: dict, train: bool = False) -> dict:
        """Computes the mask branch on regions.

        A subclass with another head on the regions adds its outputs to these.

        Args:
          regions: arrays [batch, regions, ...]: "boxes" and, for other heads, "classes": the true
            classes in training, 0 where a region has none.

        Returns:
          "features" [batch, regions, height, width, channels], which the mask head reads, and
          "logits" [batch, regions, height, width, outputs].
        """
        boxes = regions["boxes"]
        if self.neck == "c4":
            x = self.box_head(self._region_features(levels, boxes, self.box_resolution), train)
        else:
            x = self._region_features(levels, boxes, self.mask_resolution)
        outputs = {"features": x, "logits": self.mask_head(x, train)}
        return {name: x.reshape(*boxes.shape[:2], *x.shape[1:]) for name, x in outputs.items()}

    def refine(self, found: dict, outputs: dict) -> dict:
        """Lets a subclass's head change the detections; returns them unchanged here.

        It runs on a few detections at a time and must treat each on its own.

        Args:
          found: the detections, as `__call__` returns them.
          outputs: what `mask_outputs` returns for these detections.
        """
        del outputs
        return found

    @property
    def masks_need_all_regions(self) -> bool:
        """Whether the mask branch has a norm that takes statistics over all regions in training.

        If not, training runs the branch on a few regions at a time, as prediction does.
        """
        if self.neck == "c4":
            return is_over_batch(backbone_of(self).norm)
        return self.mask_network == "fcn" and is_over_batch(self.head_norm)

    def mask_variables(self, variables: dict) -> dict:
        """Returns the variables of the parts that `mask_outputs` runs."""
        others = {"backbone", "fpn", "rpn", "box_predictor"}
        if self.neck != "c4":
            others.add("box_head")
        return {
            collection: {name: part for name, part in parts.items() if name not in others}
            for collection, parts in variables.items()
            if collection in ("params", "batch_stats")
        }

    def _region_features(self, levels, boxes, resolution):
        """Reads each box's features, [batch · regions, resolution, resolution, channels]."""
        # A pyramid's last level serves large anchors only.
        used = levels[:4] if self.neck == "fpn" else levels
        if self.neck == "c4":
            resolution *= 2  # the last stage halves it
        features = self.pooling(
            used, boxes, strides=self.strides[: len(used)], output_size=resolution
        )
        return features.reshape(-1, *features.shape[2:])

    def __call__(self, images, sizes=None, train: bool = False) -> dict:
        """Finds the objects in images.

        Args:
          images: [batch, height, width, channels] of a float dtype.
          sizes: [batch, 2], height and width of each image within its padding; None if there is no
            padding.
          train: whether norms use the batch's statistics.

        Returns:
          "boxes" [batch, detections, 4] in pixels, "scores" [batch, detections], "classes" [batch,
          detections] (1 … num_classes), "masks" [batch, detections, 28, 28] ("c4": 14, 14),
          probabilities in the frame of the box, and "valid" [batch, detections]; zeros where not
          valid.
        """
        levels = self.pyramid(images, train)
        batch, *image_size = images.shape[:3]
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.asarray(image_size, jnp.int32), (batch, 2))
        outputs = self.rpn_outputs(levels, image_size=tuple(image_size), train=train)
        proposals = propose(*outputs, sizes, self.proposals)
        logits, deltas = self.box_outputs(levels, proposals["boxes"], train)
        found = detect(
            logits, deltas, proposals["boxes"], proposals["valid"], sizes, self.detections
        )
        if self.is_initializing() or (train and self.masks_need_all_regions):
            return self.add_masks(levels, found, train)
        model, variables = self.unbind()
        add_masks = partial(model.apply, variables, levels, train=train, method="add_masks")
        return over_groups(add_masks, found, found["valid"], size=MASK_GROUP)

    def run_layers(self, images) -> dict:
        """Runs every layer on one region of each image: enough for `init`, and faster to trace."""
        levels, zero = self.pyramid(images), jnp.zeros((len(images), 1, 4), jnp.float32)
        self.rpn(levels)
        self.box_outputs(levels, zero)
        found = {"boxes": zero, "scores": zero[..., 0], "valid": zero[..., 0] > 0}
        return self.add_masks(levels, found | {"classes": zero[..., 0].astype(jnp.int32)})

    def add_masks(self, levels, found: dict, train: bool = False) -> dict:
        """Adds "masks" to detections, and refines them."""
        outputs = self.mask_outputs(levels, found, train)
        logits, classes = outputs["logits"], found["classes"].reshape(-1)
        flat = logits.reshape(-1, *logits.shape[2:])
        masks = mask_probabilities(flat, classes, loss=self.mask_loss).reshape(logits.shape[:4])
        masks = jnp.where(found["valid"][..., None, None], masks, 0.0)
        return self.refine(found | {"masks": masks}, outputs)
