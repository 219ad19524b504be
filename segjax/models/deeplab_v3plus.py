"""DeepLab v3+: Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018 (arXiv:1802.02611).

New since v3: a decoder that joins ASPP's features with a map of stride 4 (section 3.1); atrous
separable convolutions in ASPP and decoder; aligned Xception as the backbone (section 3.2). The
paper's tables and other implementations, by arguments:

  ResNet-101 (tables 1-3)     backbone="resnet101", multi_grid=(1, 2, 4), separable=False; without
                              the decoder low_level_features=None
  1×1 channels (table 1)      low_level_features=8 … 64, decoder_convolutions=1
  3×3 convolutions (table 2)  decoder_convolutions=1 … 3
  Xception (table 5)          the default; without SC separable=False
  Cityscapes (table 7)        image_pooling=False; backbone="xception71"
  detectron2                  backbone="resnet103", multi_grid=(1, 2, 4), align_corners=False,
                              image_pooling=(32, 64)
  segmentation-models-pytorch backbone="resnet50" …, multi_grid=(1, 1, 1), dropout_rate=0.5,
                              atrous_rates=(12, 24, 36), head_features=256,
                              decoder_convolutions=1, normalize_depthwise=False
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from segjax.models.aspp import ASPP, ImagePooling, rates_at
from segjax.models.backbones.registry import BackboneName, backbone_of
from segjax.models.heads import AuxiliaryHead, classifier, upsampled
from segjax.models.layers import ConvolutionNorm, SeparableConvolution
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.resize import resize_bilinear


class Decoder(nn.Module):
    """Upsampled features, concatenated with projected low-level ones → 3×3 convolutions (figure 2).

    Parameters: "low_level" (the 1×1 convolution), "conv1" ….

    Attributes:
      low_level_features: channels of the 1×1 convolution.
      features, convolutions: channels and number of the 3×3 convolutions.
      convolution: makes a 3×3 convolution with its norm and activation.
      align_corners: whether upsampling keeps corner positions in place.
    """

    low_level_features: int
    features: int
    convolutions: int
    convolution: Any
    align_corners: bool = True
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, low_level, train: bool = False):
        """Maps [batch, h, w, channels] and [batch, H, W, channels] to [batch, H, W, features]."""
        low_level = ConvolutionNorm(
            self.low_level_features,
            kernel_size=1,
            norm=self.norm,
            dtype=self.dtype,
            name="low_level",
        )(low_level, train)
        height, width = low_level.shape[1:3]
        x = resize_bilinear(x, (height, width), align_corners=self.align_corners)
        x = jnp.concatenate([x, low_level], axis=-1)
        for i in range(self.convolutions):
            x = self.convolution(self.features, name=f"conv{i + 1}")(x, train)
        return x


class DeepLabV3Plus(Network):
    """DeepLab v3's encoder, a decoder and a classifier; see the module for the paper's variants.

    Parameters: "backbone", "aspp", "decoder", "logits", and if they are configured "head" and
    "auxiliary_head".

    Attributes:
      num_classes: number of classes, background included.
      backbone: a backbone's name, or a module, which keeps its own norm and dtype.
      output_stride: the encoder's: 8, 16 or 32.
      multi_grid, atrous_rates, image_pooling, aspp_features, projection_size: as in `DeepLabV3`.
      head_features: channels of a 3×3 convolution between ASPP and decoder; None for none.
      dropout_rate: dropout after ASPP's projection.
      low_level_features: channels to which the map of stride 4 is reduced; None for no decoder.
      decoder_features, decoder_convolutions: channels and number of the decoder's 3×3 convolutions.
      separable: whether all 3×3 convolutions outside the backbone are atrous separable ones.
      normalize_depthwise: whether these have norm and ReLU between their two parts, as in
        TensorFlow DeepLab.
      auxiliary_head: whether there is an `AuxiliaryHead` on the stage before the last.
      auxiliary_dropout_rate: dropout before the auxiliary head's classifier.
      align_corners: whether upsampling keeps corner pixels in place.
      norm: normalisation of all layers.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "xception65"
    output_stride: int = 16
    multi_grid: tuple[int, ...] | None = None
    atrous_rates: tuple[int, ...] | None = None
    image_pooling: ImagePooling = True
    aspp_features: int = 256
    projection_size: int = 1
    head_features: int | None = None
    dropout_rate: float = 0.1
    low_level_features: int | None = 48
    decoder_features: int = 256
    decoder_convolutions: int = 2
    separable: bool = True
    normalize_depthwise: bool = True
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
          "coarse_logits": the logits before upsampling, at stride 4, or without a decoder at the
            output stride.
          "auxiliary_logits": with the auxiliary head, a tuple of its coarse logits alone.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone = backbone_of(self, norm=self.norm, dtype=self.dtype)
        maps = backbone(
            images, output_stride=self.output_stride, multi_grid=self.multi_grid, train=train
        )
        rates = self.atrous_rates
        x = ASPP(
            rates_at(self.output_stride) if rates is None else rates,
            features=self.aspp_features,
            image_pooling=self.image_pooling,
            projection_size=self.projection_size,
            separable=self.separable,
            normalize_depthwise=self.normalize_depthwise,
            dropout_rate=self.dropout_rate,
            align_corners=self.align_corners,
            norm=self.norm,
            dtype=self.dtype,
            name="aspp",
        )(maps["features"], train)
        if self.head_features is not None:
            x = self._convolution()(self.head_features, name="head")(x, train)
        if self.low_level_features is not None:
            x = Decoder(
                self.low_level_features,
                features=self.decoder_features,
                convolutions=self.decoder_convolutions,
                convolution=self._convolution(),
                align_corners=self.align_corners,
                norm=self.norm,
                dtype=self.dtype,
                name="decoder",
            )(x, maps["low_level"], train)
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

    def _convolution(self):
        if not self.separable:
            return functools.partial(ConvolutionNorm, norm=self.norm, dtype=self.dtype)
        return functools.partial(
            SeparableConvolution,
            normalize_depthwise=self.normalize_depthwise,
            activate_depthwise=self.normalize_depthwise,
            norm=self.norm,
            dtype=self.dtype,
        )
