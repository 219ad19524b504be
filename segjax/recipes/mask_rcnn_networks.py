"""The networks of Mask R-CNN as a configuration; what each field means, the model says."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp

from segjax.data.augmentation.semantic import Normalize
from segjax.models.backbones.registry import BackboneName, make_backbone
from segjax.models.detections import DetectionConfig
from segjax.models.mask_rcnn import MaskNetwork, MaskRCNN, Neck
from segjax.models.normalization import BatchNorm, GroupNorm
from segjax.models.regions import RegionPooling
from segjax.models.roi_heads import MaskLoss
from segjax.models.rpn import Anchors, ProposalConfig
from segjax.pretrained import preprocess

NormName = Literal["frozen", "batch", "group"]
Pixels = Literal["imagenet", "msra", "facebook", "minus_one_to_one"]
NORMALIZATIONS = {
    "imagenet": preprocess.IMAGENET,
    "msra": preprocess.MSRA,
    "facebook": preprocess.FACEBOOK,
    "minus_one_to_one": preprocess.MINUS_ONE_TO_ONE,
}


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Mask R-CNN; the defaults are detectron2's R50-FPN. See `segjax.models.MaskRCNN`."""

    backbone: BackboneName = "resnet50_msra"
    width_multiplier: float = 1.0
    """Of the backbone's channels."""
    pixels: Pixels = "msra"
    """How the backbone's weights want the pixels: torchvision's mean and deviation, the mean alone
    (MSRA's ResNets), those of ResNeXt's weights, or a range from −1 to 1."""
    neck: Neck = "fpn"
    fpn_features: int = 256
    norm: NormName = "frozen"
    """Of the backbone: the running statistics of its trained weights, batch norm over all devices,
    or group norm."""
    head_norm: NormName | None = None
    """Of the pyramid and of the heads' convolutions; None for biases."""
    norm_groups: int = 32
    """Of a group norm."""
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """One for each level of a pyramid; all of them on a single map."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width."""
    rpn_convolutions: int = 1
    box_convolutions: int = 0
    box_fully_connected: int = 2
    fc_features: int = 1024
    head_features: int = 256
    class_agnostic_boxes: bool = False
    mask_network: MaskNetwork = "fcn"
    mask_loss: MaskLoss = "sigmoid"
    class_agnostic_masks: bool = False
    pooling: RegionPooling = RegionPooling()
    proposals: ProposalConfig = ProposalConfig()
    """In prediction."""
    detections: DetectionConfig = DetectionConfig()
    bfloat16: bool = False
    """Compute in bfloat16; parameters, boxes and losses stay float32."""

    @property
    def normalize(self) -> Normalize:
        return NORMALIZATIONS[self.pixels]

    def model(self, num_classes: int, *, network: type[MaskRCNN] = MaskRCNN) -> MaskRCNN:
        """Returns the network for so many classes, the background not counted.

        Args:
          network: the class of it, such as a subclass with another head.
        """
        dtype: Any = jnp.bfloat16 if self.bfloat16 else None
        norm = self._norm(self.norm)
        backbone = make_backbone(
            self.backbone, norm=norm, dtype=dtype, width_multiplier=self.width_multiplier
        )
        sizes = tuple((size,) for size in self.anchor_sizes)
        if self.neck == "c4":
            backbone = backbone.clone(num_stages=3)
        if self.neck != "fpn":
            sizes = (self.anchor_sizes,)
        head_norm = None if self.head_norm is None else self._norm(self.head_norm)
        return network(
            num_classes,
            backbone=backbone,
            neck=self.neck,
            fpn_features=self.fpn_features,
            fpn_norm=head_norm,
            anchors=Anchors(sizes=sizes, aspect_ratios=self.aspect_ratios),
            rpn_convolutions=self.rpn_convolutions,
            box_convolutions=self.box_convolutions,
            box_fully_connected=self.box_fully_connected,
            fc_features=self.fc_features,
            head_features=self.head_features,
            head_norm=head_norm,
            class_agnostic_boxes=self.class_agnostic_boxes,
            mask_network=self.mask_network,
            mask_loss=self.mask_loss,
            class_agnostic_masks=self.class_agnostic_masks,
            pooling=self.pooling,
            proposals=self.proposals,
            detections=self.detections,
            norm=norm,
            dtype=dtype,
        )

    def _norm(self, name: NormName):
        if name == "group":
            return partial(GroupNorm, num_groups=self.norm_groups)
        return partial(BatchNorm, epsilon=1e-5, frozen=name == "frozen")
