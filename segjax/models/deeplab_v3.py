"""DeepLab v3: Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image
Segmentation", 2017 (arXiv:1706.05587).

New since v2: batch norm in an ASPP with a 1×1 and an image-level branch (section 3.3), multi-grid
rates in the last stage (section 3.2.1), output stride 16 in training and 8 at test; no CRF and no
multi-scale input. The paper's tables and the well-known implementations, by arguments:

  77.21 on VOC val (table 5)  the default: ResNet-101, MG(1, 2, 4), ASPP, image pooling
  ASPP without the image      image_pooling=False, and atrous_rates=(6, 12, 18, 24)
  cascade (section 3.2)       backbone=resnet101(cascaded_stages=3), multi_grid=(1, 2, 1),
                              aspp=False
  test at output stride 8     model.clone(output_stride=8), with the same variables
  TensorFlow's MobileNetV2    backbone="mobilenet_v2", multi_grid=None, atrous_rates=()
  torchvision                 output_stride=8, multi_grid=None, head_features=256,
                              dropout_rate=0.5, auxiliary_head=True, align_corners=False
  detectron2                  image_pooling=(32, 64), align_corners=False
  mmsegmentation              as torchvision, with backbone="resnet50_v1c", aspp_features=512,
                              projection_size=3, head_features=None, dropout_rate=0.1
"""

from typing import Any

import chex
import flax.linen as nn

from segjax.models.aspp import ASPP, ImagePooling, rates_at
from segjax.models.backbones.registry import BackboneName, backbone_of
from segjax.models.heads import AuxiliaryHead, classifier, upsampled
from segjax.models.layers import ConvolutionNorm
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm


class DeepLabV3(Network):
    """ASPP and classifier on an atrous backbone; see the module for the paper's variants.

    Parameters: "backbone", "aspp", "logits", and if they are configured "head" and
    "auxiliary_head".

    Attributes:
      num_classes: number of classes, background included.
      backbone: a backbone's name, or a module, which keeps its own norm and dtype.
      output_stride: 8, 16 or 32.
      multi_grid: rates of the last stage's units, multiplied by the rate that the output stride
        gives; None dilates as torchvision does, and is what MobileNetV2 needs.
      aspp: False puts the classifier directly on the backbone's features.
      atrous_rates: ASPP's rates, in positions of the map; None follows the output stride:
        (6, 12, 18) at 16, doubled at 8. () keeps the 1×1 branch and image pooling alone.
      image_pooling: ASPP's image-level branch: True for the mean over the map, (height, width) for
        means over windows of that many positions, as in detectron2, False for none.
      aspp_features: channels of ASPP.
      projection_size: side of the kernel of ASPP's projection: 1 in the paper, 3 in mmsegmentation.
      head_features: channels of a 3×3 convolution between ASPP and the classifier; None for none.
      dropout_rate: dropout after ASPP's projection: 0.1 in the released code, 0.5 in torchvision.
      auxiliary_head: whether there is an `AuxiliaryHead` on the stage before the last.
      auxiliary_dropout_rate: dropout before the auxiliary head's classifier.
      align_corners: whether upsampling keeps corner pixels in place; True as in the released code,
        for sides of 16k + 1.
      norm: normalisation of all layers; the paper keeps 0.9997 of the statistics a step, and
        freezes them in phase two.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "resnet101"
    output_stride: int = 16
    multi_grid: tuple[int, ...] | None = (1, 2, 4)
    aspp: bool = True
    atrous_rates: tuple[int, ...] | None = None
    image_pooling: ImagePooling = True
    aspp_features: int = 256
    projection_size: int = 1
    head_features: int | None = None
    dropout_rate: float = 0.1
    auxiliary_head: bool = False
    auxiliary_dropout_rate: float = 0.1
    align_corners: bool = True
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Maps float images [batch, height, width, channels] to a dict of arrays.

        Returns:
          "logits": [batch, height, width, num_classes] float32.
          "coarse_logits": the logits before upsampling, at the output stride.
          "auxiliary_logits": with the auxiliary head, a tuple of its coarse logits alone.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone = backbone_of(self, norm=self.norm, dtype=self.dtype)
        maps = backbone(
            images, output_stride=self.output_stride, multi_grid=self.multi_grid, train=train
        )
        x = maps["features"]
        if self.aspp:
            rates = self.atrous_rates
            x = ASPP(
                rates_at(self.output_stride) if rates is None else rates,
                features=self.aspp_features,
                image_pooling=self.image_pooling,
                projection_size=self.projection_size,
                dropout_rate=self.dropout_rate,
                align_corners=self.align_corners,
                norm=self.norm,
                dtype=self.dtype,
                name="aspp",
            )(x, train)
        if self.head_features is not None:
            x = ConvolutionNorm(self.head_features, norm=self.norm, dtype=self.dtype, name="head")(
                x, train
            )
        coarse = classifier(self.num_classes, dtype=self.dtype)(x)
        outputs = upsampled(coarse, images.shape[1:3], align_corners=self.align_corners)
        if self.auxiliary_head:
            auxiliary = AuxiliaryHead(
                self.num_classes,
                dropout_rate=self.auxiliary_dropout_rate,
                norm=self.norm,
                dtype=self.dtype,
                name="auxiliary_head",
            )
            outputs["auxiliary_logits"] = (auxiliary(maps["auxiliary"], train),)
        return outputs
