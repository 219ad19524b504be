"""DeepLab v3's atrous spatial pyramid pooling: Chen et al., "Rethinking Atrous Convolution for
Semantic Image Segmentation", 2017 (arXiv:1706.05587), section 3.3.

v2's ASPP sums the class scores of its branches (`deeplab_v2.py`). In v3 the branches are features
with batch norm, concatenated and projected; a 1×1 convolution and the image's mean are branches
too. `separable` makes it v3+'s (arXiv:1802.02611, section 3.1).
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from segjax.models.layers import Convolution, ConvolutionNorm, SeparableConvolution
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.resize import resize_bilinear

ImagePooling = bool | tuple[int, int]


def rates_at(output_stride: int) -> tuple[int, ...]:
    """Returns the paper's rates: (6, 12, 18) at output stride 16, doubled at 8 (section 3.3)."""
    return tuple(rate * 16 // output_stride for rate in (6, 12, 18))


class ASPP(nn.Module):
    """1×1, 3×3 at each rate, image pooling → concatenation in that order → projection → dropout.

    Parameters: "pointwise", "atrous1" …, "image_pooling", "projection".

    Attributes:
      rates: atrous rates of the 3×3 branches, in positions of the map; may be empty.
      features: channels of every branch and of the result.
      image_pooling: True adds a branch with the mean over the map, normalised over the batch.
        (height, width) takes means over windows of that many positions, cut to the map, with a bias
        instead of a norm. detectron2 does so, which keeps the statistics of training crops on large
        test images. False leaves the branch out.
      separable: whether the 3×3 branches are atrous separable convolutions.
      normalize_depthwise: whether a separable convolution has norm and ReLU between its two parts.
        TensorFlow DeepLab has them; segmentation-models-pytorch does not.
      projection_size: side of the projection's kernel; the paper's is 1, mmsegmentation's 3.
      dropout_rate: dropout after the projection.
      align_corners: whether upsampling the window means keeps corner positions in place.
    """

    rates: tuple[int, ...]
    features: int = 256
    image_pooling: ImagePooling = True
    separable: bool = False
    normalize_depthwise: bool = True
    projection_size: int = 1
    dropout_rate: float = 0.1
    align_corners: bool = True
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [batch, height, width, channels] to [batch, height, width, features]."""
        shared = {"norm": self.norm, "dtype": self.dtype}
        branches: list[nn.Module] = [
            ConvolutionNorm(self.features, kernel_size=1, name="pointwise", **shared)
        ]
        for i, rate in enumerate(self.rates, 1):
            if self.separable:
                branch = SeparableConvolution(
                    self.features,
                    rate=rate,
                    normalize_depthwise=self.normalize_depthwise,
                    activate_depthwise=self.normalize_depthwise,
                    name=f"atrous{i}",
                    **shared,
                )
            else:
                branch = ConvolutionNorm(self.features, rate=rate, name=f"atrous{i}", **shared)
            branches.append(branch)
        maps = [branch(x, train) for branch in branches]
        if self.image_pooling:
            maps.append(self._pooled(x, train))
        x = jnp.concatenate(maps, axis=-1)
        projection = ConvolutionNorm(
            self.features, kernel_size=self.projection_size, name="projection", **shared
        )
        x = projection(x, train)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(x)

    def _pooled(self, x, train):
        size, name = x.shape[1:3], "image_pooling"
        if isinstance(self.image_pooling, bool):
            means = jnp.mean(x, axis=(1, 2), keepdims=True)
            layer = ConvolutionNorm(
                self.features, kernel_size=1, norm=self.norm, dtype=self.dtype, name=name
            )
            means = layer(means, train)
        else:
            window = tuple(min(pair) for pair in zip(self.image_pooling, size, strict=True))
            sums = nn.pool(x.astype(jnp.float32), 0.0, lax.add, window, (1, 1), "VALID")
            means = (sums / math.prod(window)).astype(x.dtype)
            layer = Convolution(
                self.features, kernel_size=1, use_bias=True, dtype=self.dtype, name=name
            )
            means = nn.relu(layer(means))
        return resize_bilinear(means, size, align_corners=self.align_corners)
