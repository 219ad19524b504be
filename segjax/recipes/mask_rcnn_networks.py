"""The configuration of the Mask R-CNN networks."""

from functools import partial
from typing import Literal

from segjax.models.backbones.registry import BackboneName
from segjax.models.mask_rcnn import MaskRCNN
from segjax.models.normalization import NormName, norm_of
from segjax.models.rpn import Anchors
from segjax.pretrained.preprocess import Pixels
from segjax.recipes.network_config import BackboneNetworkConfig, configures, module_of


@configures(MaskRCNN, without=("fpn_norm", "anchors"))
class MaskRCNNConfig(BackboneNetworkConfig):
    """Mask R-CNN; the defaults are detectron2's R50-FPN. See `segjax.models.MaskRCNN`."""

    backbone: BackboneName = "resnet50_msra"
    """The backbone, a ResNet; "_msra" has its strides where MSRA's weights have them."""
    pixels: Pixels = "msra"
    norm: NormName = "frozen"
    """Norm of the backbone: batch norm over all devices, batch norm with the frozen statistics of
    trained weights, or group norm."""
    norm_epsilon: float = 1e-5
    """Number that the backbone's norm adds to the variance; 0 for torchvision's first weights."""
    head_norm: NormName | None = None
    """Norm after the convolutions of the pyramid and the heads; None adds biases instead."""
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Sides of the anchors in pixels: one for each level of a pyramid, or all on a single map."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    anchors_rounded: bool = False
    """Round anchors to whole pixels, as torchvision does."""
    anchor_stride: Literal["level", "image"] = "level"
    """Space anchors by the level's stride, or as torchvision by ⌊image side / map side⌋."""

    def model(self, num_classes: int, *, network: type[MaskRCNN] = MaskRCNN) -> MaskRCNN:
        """Makes the network.

        Args:
          num_classes: number of classes without the background.
          network: the class to make, such as a subclass with another head.
        """
        norm = partial(norm_of(self.norm), epsilon=self.norm_epsilon)
        backbone = self.backbone_module(self.backbone, norm)
        sizes = tuple((size,) for size in self.anchor_sizes)
        if self.neck == "c4":
            backbone = backbone.clone(num_stages=3)
        if self.neck != "fpn":
            sizes = (self.anchor_sizes,)
        head_norm = None if self.head_norm is None else norm_of(self.head_norm)
        return module_of(
            self,
            network,
            num_classes,
            backbone=backbone,
            fpn_norm=head_norm,
            head_norm=head_norm,
            anchors=Anchors(
                sizes=sizes,
                aspect_ratios=self.aspect_ratios,
                rounded=self.anchors_rounded,
                stride=self.anchor_stride,
            ),
            dtype=self.dtype,
        )
