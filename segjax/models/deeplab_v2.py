"""DeepLab v2: Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab: Semantic Image Segmentation
with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs", TPAMI 2017
(arXiv:1606.00915).

New since v1: atrous spatial pyramid pooling (section 3.2), which sums the scores of parallel
classifiers at several rates; ResNet-101 beside VGG-16 (section 4.1.2); the image at three scales,
fused by the maximum. The paper's rows by arguments, all of VGG-16's with
`backbone=VGG16(pool_size=3), head_features=1024`:

  LargeFOV   atrous_rates=(12,)
  ASPP-S     atrous_rates=(2, 4, 8, 12)
  ASPP-L     atrous_rates=(6, 12, 18, 24), the default
  neither    atrous_rates=(1,), kernel_size=1: the paper does not say how ResNet-101's first rows
             classify
  MSC        scales=(0.5, 0.75, 1.0)
"""

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from segjax.models.backbones.registry import BackboneName, backbone_of
from segjax.models.heads import classifier, upsampled
from segjax.models.layers import Convolution
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.resize import resize_bilinear


class Branch(nn.Module):
    """One branch of ASPP (figure 7): class scores at one atrous rate.

    Parameters: "logits", and with `head_features` "fc6" and "fc7" before it.
    """

    num_classes: int
    rate: int
    kernel_size: int = 3
    head_features: int | None = None
    dropout_rate: float = 0.5
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        if self.head_features is None:
            return classifier(
                self.num_classes, kernel_size=self.kernel_size, rate=self.rate, dtype=self.dtype
            )(x)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        for name, kernel_size in (("fc6", self.kernel_size), ("fc7", 1)):
            layer = Convolution(
                self.head_features,
                kernel_size=kernel_size,
                rate=self.rate,
                use_bias=True,
                dtype=self.dtype,
                name=name,
            )
            x = dropout(nn.relu(layer(x)))
        return classifier(self.num_classes, dtype=self.dtype)(x)


class DeepLabV2(Network):
    """ASPP on an atrous backbone, at one or several scales; see the module for the paper's rows.

    Parameters: "backbone" and "branch1" …, in the order of `atrous_rates`.

    Attributes:
      num_classes: number of classes, background included.
      backbone: a backbone's name, or a module, which keeps its own norm and dtype.
      output_stride: 8, 16 or 32.
      atrous_rates: rate of each branch, in positions of the map, at any output stride.
      kernel_size: side of the branches' atrous kernels.
      head_features: channels of each branch's fc6 and fc7: 1024 for VGG-16. None for ResNet-101,
        whose branches are 3×3 classifiers.
      dropout_rate: dropout after fc6 and fc7.
      scales: scales of the image; the network runs at each with the same weights.
      align_corners: whether resizing keeps corner pixels in place; True as in Caffe's Interp.
      norm: normalisation of a named backbone; the released network trains with frozen statistics.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "resnet101"
    output_stride: int = 8
    atrous_rates: tuple[int, ...] = (6, 12, 18, 24)
    kernel_size: int = 3
    head_features: int | None = None
    dropout_rate: float = 0.5
    scales: tuple[float, ...] = (1.0,)
    align_corners: bool = True
    norm: Norm = BatchNorm
    dtype: Any = None

    def __post_init__(self):
        for name in ("atrous_rates", "scales"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} holds one or more positive numbers; got {values!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Maps float images [batch, height, width, channels] to a dict of arrays.

        Returns:
          "logits": [batch, height, width, num_classes] float32.
          "coarse_logits": the logits before upsampling: at each position the maximum over scales,
            on the grid of the largest scale.
          "auxiliary_logits": with several scales, a tuple of each scale's coarse logits in the
            order of `scales`; the released network supervises them too.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone = backbone_of(self, norm=self.norm, dtype=self.dtype)
        branches = [
            Branch(
                self.num_classes,
                rate=rate,
                kernel_size=self.kernel_size,
                head_features=self.head_features,
                dropout_rate=self.dropout_rate,
                dtype=self.dtype,
                name=f"branch{i}",
            )
            for i, rate in enumerate(self.atrous_rates, 1)
        ]
        scores = []
        for scale in self.scales:
            scaled = self._resized(images, self._scaled_size(images.shape[1:3], scale))
            x = backbone(scaled, output_stride=self.output_stride, train=train)["features"]
            scores.append(sum(branch(x, train).astype(jnp.float32) for branch in branches))
        if len(scores) == 1:
            return upsampled(scores[0], images.shape[1:3], align_corners=self.align_corners)
        size = max(x.shape[1:3] for x in scores)
        coarse = jnp.stack([self._resized(x, size) for x in scores]).max(axis=0)
        outputs = upsampled(coarse, images.shape[1:3], align_corners=self.align_corners)
        return {**outputs, "auxiliary_logits": tuple(scores)}

    def _scaled_size(self, size, scale):
        # Keeping corner pixels in place makes 321 → 241 and 161, as in the released network.
        fixed = 1 if self.align_corners else 0
        return tuple(max(round(scale * (side - fixed)) + fixed, 1) for side in size)

    def _resized(self, x, size):
        return resize_bilinear(x, size, align_corners=self.align_corners)
