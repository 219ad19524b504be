"""Aligned Xception: Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018
(DeepLab v3+, arXiv:1802.02611), section 3.2 and figure 4, after Chollet's Xception (CVPR 2017) and
MSRA's COCO 2017 entry.

The figure does not show the ReLUs, nor Xception-41 and -71. Both follow TensorFlow DeepLab's
core/xception.py, and its public weights fit.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax

from segjax.models.layers import (
    ConvolutionNorm,
    SeparableConvolution,
    atrous_units,
    check_multi_grid,
)
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.initializers import truncated_normal

# TensorFlow DeepLab initialises so in xception_arg_scope; the paper does not say how.
initializer = truncated_normal(0.09)


class XceptionBlock(nn.Module):
    """Three separable convolutions and a shortcut; the third one's stride replaces max pooling.

    Returns the block's output and the second separable convolution's. Parameters: "separable1" …
    "separable3" (see `SeparableConvolution`) and "shortcut" with "convolution" and "norm".

    Attributes:
      features: channels of the three separable convolutions.
      stride: stride of the third.
      rates: atrous rates of the three.
      shortcut: a 1×1 convolution, the input itself ("sum"), or none.
      activate_inside: ReLU after every depthwise and pointwise convolution, instead of one before
        every separable convolution.
    """

    features: tuple[int, int, int]
    stride: int = 1
    rates: tuple[int, ...] = (1, 1, 1)
    shortcut: Literal["convolution", "sum", "none"] = "convolution"
    activate_inside: bool = False
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        inputs, outputs = x, []
        for i in range(3):
            x = SeparableConvolution(
                self.features[i],
                stride=self.stride if i == 2 else 1,
                rate=self.rates[i],
                activation=nn.relu if self.activate_inside else None,
                norm=self.norm,
                depthwise_init=initializer,
                pointwise_init=initializer,
                dtype=self.dtype,
                name=f"separable{i + 1}",
            )(x if self.activate_inside else nn.relu(x), train)
            outputs.append(x)
        if self.shortcut == "convolution":
            x = x + ConvolutionNorm(
                self.features[2],
                kernel_size=1,
                stride=self.stride,
                activation=None,
                norm=self.norm,
                kernel_init=initializer,
                dtype=self.dtype,
                name="shortcut",
            )(inputs, train)
        elif self.shortcut == "sum":
            x = x + inputs
        return x, outputs[1]


class Xception(Network):
    """The aligned Xception without its classifier.

    Parameters: "stem1", "stem2" with "convolution" and "norm"; "entry_block1" …, "middle_block1" …,
    "exit_block1", "exit_block2"; see `XceptionBlock`. TensorFlow's names are
    entry_flow/conv1_1, entry_flow/block1/unit_1/xception_module/separable_conv1_depthwise,
    middle_flow/block1/unit_1/….

    Attributes:
      stem_features: channels of the two 3×3 convolutions before the entry flow.
      entry_features, entry_strides: channels and strides of the entry flow's blocks.
      middle_blocks: number of blocks of the middle flow.
      exit_features: channels of the separable convolutions of the exit flow's two blocks.
      width_multiplier: factor of all channels; the products are rounded.
      norm: normalisation of all layers; TensorFlow's batch norm has epsilon 1e-3 and momentum
        0.9997.
    """

    stem_features: tuple[int, int] = (32, 64)
    entry_features: tuple[int, ...] = (128, 256, 728)
    entry_strides: tuple[int, ...] = (2, 2, 2)
    middle_blocks: int = 16
    exit_features: tuple[tuple[int, int, int], tuple[int, int, int]] = (
        (728, 1024, 1024),
        (1536, 1536, 2048),
    )
    width_multiplier: float = 1.0
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the maps after the exit flow, the middle flow and a block of the entry flow.

        Args:
          images: [batch, height, width, channels]; in [−1, 1] for TensorFlow's weights.
          output_stride: 8, 16 or 32.
          multi_grid: rates of the last block's three separable convolutions, multiplied by the rate
            that the output stride gives. None is (1, 1, 1), because the stride ends the block
            before.
          train: whether norms use the batch's statistics.

        Returns:
          "features": the exit flow's map, 2048 channels.
          "auxiliary": the middle flow's map, 728 channels.
          "low_level": at stride 4, 256 channels: the output of the second separable convolution,
            before its ReLU, in the block whose third takes the next stride. It is TensorFlow
            DeepLab's decoder end point "separable_conv2_pointwise".

        Raises:
          ValueError: `output_stride` or `multi_grid` does not fit.
        """
        check_multi_grid(multi_grid, length=3)
        stem_features, entry_features, exit_features = jax.tree.map(
            lambda features: round(features * self.width_multiplier),
            (self.stem_features, self.entry_features, self.exit_features),
        )
        entry = zip(entry_features, self.entry_strides, strict=True)
        middle = entry_features[-1:] * 3
        last = {"shortcut": "none", "activate_inside": True}
        blocks = [
            (f"entry_block{i}", (f,) * 3, stride, {}) for i, (f, stride) in enumerate(entry, 1)
        ]
        blocks += [
            (f"middle_block{i + 1}", middle, 1, {"shortcut": "sum"})
            for i in range(self.middle_blocks)
        ]
        blocks += [
            ("exit_block1", exit_features[0], 2, {}),
            ("exit_block2", exit_features[1], 1, last),
        ]
        strides = [stride for _, _, stride, _ in blocks]
        units = atrous_units([2, *strides], output_stride=output_stride)[1:]

        layer = functools.partial(
            ConvolutionNorm, norm=self.norm, kernel_init=initializer, dtype=self.dtype
        )
        x = layer(stem_features[0], stride=2, name="stem1")(images, train)
        x = layer(stem_features[1], name="stem2")(x, train)
        reached, maps = 2, {}
        for (name, features, stride, options), unit in zip(blocks, units, strict=True):
            if name == "exit_block1":
                maps["auxiliary"] = x
            grid = multi_grid if name == "exit_block2" and multi_grid else (1, 1, 1)
            x, second = XceptionBlock(
                features,
                stride=unit.stride,
                rates=tuple(unit.rate * rate for rate in grid),
                norm=self.norm,
                dtype=self.dtype,
                name=name,
                **options,
            )(x, train)
            if reached == 4 and stride == 2:
                maps["low_level"] = second
            reached *= stride
        return {**maps, "features": x}


def xception41(**attributes) -> Xception:
    """Returns Xception-41: eight middle blocks."""
    return Xception(**{"middle_blocks": 8, **attributes})


def xception65(**attributes) -> Xception:
    """Returns Xception-65, the paper's figure 4."""
    return Xception(**attributes)


def xception71(**attributes) -> Xception:
    """Returns Xception-71: two more blocks in the entry flow."""
    entry = {"entry_features": (128, 256, 256, 728, 728), "entry_strides": (2, 1, 2, 1, 2)}
    return Xception(**{**entry, **attributes})
