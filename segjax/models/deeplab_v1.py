"""DeepLab v1: Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic Image Segmentation with Deep
Convolutional Nets and Fully Connected CRFs", ICLR 2015 (arXiv:1412.7062).

VGG-16 at output stride 8 by atrous convolution (section 3.1), its fully connected layers as
convolutions, and bilinear upsampling; the CRF is `segjax.ops.dense_crf`. The default is
DeepLab-LargeFOV, the network with the paper's best results. Table 2's kernels and rates:

  DeepLab            kernel_size=4, atrous_rate=4,  head_features=4096   65.1 M parameters
  DeepLab-7×7        kernel_size=7, atrous_rate=4,  head_features=4096  134.3 M
  DeepLab-4×4        kernel_size=4, atrous_rate=8,  head_features=4096   65.1 M
  DeepLab-LargeFOV   kernel_size=3, atrous_rate=12, head_features=1024   20.5 M

The released networks differ from the text in two points. All have max pooling over 3×3 windows:
`backbone=VGG16(pool_size=3)`. LargeFOV and MSc-LargeFOV average pool5 over 3×3 windows before fc6;
the other three do not: `average_pooling=False`.
"""

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from segjax.models.backbones.registry import BackboneName, backbone_of
from segjax.models.heads import classifier, upsampled
from segjax.models.layers import Convolution
from segjax.models.network import Network
from segjax.ops.dtypes import sum_dtype


class DeepLabV1(Network):
    """fc6 → fc7 → classifier on VGG-16's features; see the module for the paper's variants.

    Parameters: "backbone", "fc6", "fc7", "logits", each with biases, and with multi-scale features
    "image_conv1", "image_conv2", "pool1_conv1" … "pool4_conv2".

    Attributes:
      num_classes: number of classes, background included.
      backbone: a backbone's name, or a module; only VGG-16 has the maps for multi-scale features.
      output_stride: 8, 16 or 32.
      kernel_size, atrous_rate: fc6's kernel and rate, the rate in positions of the map, at any
        output stride.
      head_features: channels of fc6 and fc7.
      average_pooling: whether pool5 is averaged over 3×3 windows before fc6.
      multi_scale_features: MSc (section 4.3): the image and the first four pooled maps go through
        3×3 and 1×1 convolutions of 128 channels each to the classifier, beside fc7.
      dropout_rate: dropout after fc6, fc7 and each layer of the multi-scale features.
      align_corners: whether upsampling keeps corner pixels in place; True as in Caffe's Interp.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "vgg16"
    output_stride: int = 8
    kernel_size: int = 3
    atrous_rate: int = 12
    head_features: int = 1024
    average_pooling: bool = True
    multi_scale_features: bool = False
    dropout_rate: float = 0.5
    align_corners: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Maps float images [batch, height, width, channels] to a dict of arrays.

        Returns:
          "logits": [batch, height, width, num_classes] float32.
          "coarse_logits": the logits before upsampling, at the output stride.

        Raises:
          ValueError: the backbone lacks "pool1" … "pool4" and `multi_scale_features` is on.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone = backbone_of(self, dtype=self.dtype)
        maps = backbone(images, output_stride=self.output_stride, train=train)
        x = maps["features"]
        if self.average_pooling:
            # Zeros outside the map count, as in Caffe. bfloat16 would round each partial sum.
            sums = nn.pool(x.astype(sum_dtype(x)), 0.0, lax.add, (3, 3), (1, 1), "SAME")
            x = (sums / 9).astype(x.dtype)
        x = self._layer(
            x, "fc6", self.head_features, train, kernel_size=self.kernel_size, rate=self.atrous_rate
        )
        x = self._layer(x, "fc7", self.head_features, train, kernel_size=1)
        if self.multi_scale_features:
            x = jnp.concatenate([*self._multi_scale_features(images, maps, train), x], axis=-1)
        coarse = classifier(self.num_classes, dtype=self.dtype)(x)
        return upsampled(coarse, images.shape[1:3], align_corners=self.align_corners)

    def _multi_scale_features(self, images, maps, train):
        sources = {"image": images}
        for i in range(1, 5):
            if f"pool{i}" not in maps:
                raise ValueError(
                    f"multi_scale_features needs the maps pool1 … pool4 of a VGG backbone; "
                    f"{self.backbone!r} has {sorted(maps)}"
                )
            sources[f"pool{i}"] = maps[f"pool{i}"]
        for level, (name, x) in enumerate(sources.items()):
            # Strides 8, 4, 2, 1 and 1 at output stride 8 bring all maps to fc7's grid.
            stride = max(self.output_stride // 2**level, 1)
            x = self._layer(x, f"{name}_conv1", 128, train, stride=stride)
            yield self._layer(x, f"{name}_conv2", 128, train, kernel_size=1)

    def _layer(self, x, name, features, train, **options):
        x = Convolution(features, use_bias=True, dtype=self.dtype, name=name, **options)(x)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(nn.relu(x))
