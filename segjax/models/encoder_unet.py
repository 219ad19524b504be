"""U-Net with an encoder trained on ImageNet, as in segmentation-models-pytorch (`smp.Unet`, version
0.6).

There is no paper: U-Net's decoder (arXiv:1505.04597) with padded convolutions, batch norm and
nearest upsampling runs on the maps of a ResNet or a MobileNetV2 at strides 2, 4, 8, 16 and 32.
"""

from typing import Any

import chex
import flax.linen as nn
import jax.numpy as jnp

from segjax.models.backbones.registry import BackboneName, backbone_of
from segjax.models.layers import Convolution, ConvolutionNorm
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.resize import upsample_nearest

SKIPS = ("stage3", "stage2", "stage1", "stem")  # from the deepest to stride 2


class DecoderBlock(nn.Module):
    """Nearest 2× upsampling → concatenation with the skip connection → two 3×3 convolutions.

    Parameters: "conv1", "conv2".
    """

    features: int
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *, size: tuple[int, int], skip=None, train: bool = False):
        """Maps [batch, ⌈height / 2⌉, ⌈width / 2⌉, channels] to [batch, height, width, features].

        Args:
          x: the deeper map.
          size: height and width of the result.
          skip: a map of that size, or None.
          train: whether norms use the batch's statistics.
        """
        x = upsample_nearest(x, size)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        for name in ("conv1", "conv2"):
            x = ConvolutionNorm(self.features, norm=self.norm, dtype=self.dtype, name=name)(
                x, train
            )
        return x


class EncoderUNet(Network):
    """U-Net's decoder on a backbone; images may have any size.

    Parameters: "backbone", "top" with `top_features`, "decoder_block1" (the deepest) …
    "decoder_block5", "logits" (3×3).

    Attributes:
      num_classes: number of classes, background included.
      backbone: the name of a ResNet or "mobilenet_v2", or a module with their maps, which keeps its
        own norm and dtype.
      top_features: channels of a 1×1 convolution with ReLU6 between the backbone and the decoder,
        1280 in smp's MobileNetV2; None has none.
      decoder_features: channels of the five decoder blocks, from the deepest.
      norm: normalisation of all layers.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    backbone: BackboneName | nn.Module = "resnet34"
    top_features: int | None = None
    decoder_features: tuple[int, int, int, int, int] = (256, 128, 64, 32, 16)
    norm: Norm = BatchNorm
    dtype: Any = None

    def __post_init__(self):
        if len(self.decoder_features) != 5:
            raise ValueError(
                f"decoder_features has five entries, from stride 16 to 1; "
                f"got {self.decoder_features!r}"
            )
        top = () if self.top_features is None else (self.top_features,)
        if min(*self.decoder_features, *top) < 1:
            raise ValueError(
                "decoder_features and top_features are numbers of channels, at least 1; "
                f"got {self.decoder_features!r} and {self.top_features!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Maps float images [batch, height, width, channels] to a dict of arrays.

        Returns:
          "logits": [batch, height, width, num_classes] float32.

        Raises:
          ValueError: the backbone lacks a map.
        """
        chex.assert_rank(images, 4, custom_message="images")
        chex.assert_type(images, float, custom_message="images")
        backbone = backbone_of(self, norm=self.norm, dtype=self.dtype)
        maps = backbone(images, train=train)
        if missing := [name for name in SKIPS if name not in maps]:
            raise ValueError(
                f"{self.backbone!r} has no map {missing[0]!r}; expected a ResNet or MobileNetV2"
            )
        x = maps["features"]
        if self.top_features is not None:
            x = ConvolutionNorm(
                self.top_features,
                kernel_size=1,
                activation=nn.relu6,
                norm=self.norm,
                dtype=self.dtype,
                name="top",
            )(x, train)
        skips = [*(maps[name] for name in SKIPS), None]
        for i, (features, skip) in enumerate(zip(self.decoder_features, skips, strict=True), 1):
            block = DecoderBlock(
                features, norm=self.norm, dtype=self.dtype, name=f"decoder_block{i}"
            )
            size = (images if skip is None else skip).shape[1:3]
            x = block(x, size=size, skip=skip, train=train)
        logits = Convolution(self.num_classes, use_bias=True, dtype=self.dtype, name="logits")(x)
        return {"logits": logits.astype(jnp.float32)}
