"""MobileNetV3-Large without its classifier: Howard et al., "Searching for MobileNetV3", ICCV 2019
(arXiv:1905.02244), dilated as in torchvision's DeepLab v3.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.backbones.mobilenet_v2 import STRIDES, multiplied
from segjax.models.layers import Convolution, ConvolutionNorm, atrous_units, check_multi_grid
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm


@dataclass(frozen=True)
class Bottleneck:
    """A line of table 1: side of the depthwise kernel, channels, squeeze-and-excitation, …"""

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    activation: Literal["relu", "hard_swish"]
    stride: int


LARGE = (
    Bottleneck(3, 16, 16, False, "relu", 1),
    Bottleneck(3, 64, 24, False, "relu", 2),
    Bottleneck(3, 72, 24, False, "relu", 1),
    Bottleneck(5, 72, 40, True, "relu", 2),
    Bottleneck(5, 120, 40, True, "relu", 1),
    Bottleneck(5, 120, 40, True, "relu", 1),
    Bottleneck(3, 240, 80, False, "hard_swish", 2),
    Bottleneck(3, 200, 80, False, "hard_swish", 1),
    Bottleneck(3, 184, 80, False, "hard_swish", 1),
    Bottleneck(3, 184, 80, False, "hard_swish", 1),
    Bottleneck(3, 480, 112, True, "hard_swish", 1),
    Bottleneck(3, 672, 112, True, "hard_swish", 1),
    Bottleneck(5, 672, 160, True, "hard_swish", 2),
    Bottleneck(5, 960, 160, True, "hard_swish", 1),
    Bottleneck(5, 960, 160, True, "hard_swish", 1),
)


class SqueezeExcitation(nn.Module):
    """Weighs channels by the image's means: 1×1 → ReLU → 1×1 → hard sigmoid (section 5.3).

    Parameters: "reduce" to a quarter of the channels, rounded to a multiple of 8, and "restore".
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps [batch, height, width, channels] to the same shape."""
        layer = functools.partial(Convolution, kernel_size=1, use_bias=True, dtype=self.dtype)
        channels = x.shape[-1]
        weights = jnp.mean(x, axis=(1, 2), keepdims=True)
        weights = nn.relu(layer(multiplied(channels // 4, 1, 8), name="reduce")(weights))
        return x * jax.nn.hard_sigmoid(layer(channels, name="restore")(weights))


class SqueezedResidual(nn.Module):
    """Expansion 1×1 → depthwise → squeeze-and-excitation → linear projection 1×1 (figure 4).

    Parameters: "expand" if the channels grow, "depthwise", "squeeze" if there is any, "project".

    Attributes:
      line: the block's sizes, whose stride decides whether there is a shortcut.
      stride, rate: stride and atrous rate of the depthwise convolution.
    """

    line: Bottleneck
    stride: int
    rate: int
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        inputs, line = x, self.line
        layer = functools.partial(ConvolutionNorm, norm=self.norm, dtype=self.dtype)
        activation: Callable = nn.relu if line.activation == "relu" else jax.nn.hard_swish
        if line.expanded != x.shape[-1]:
            expand = layer(line.expanded, kernel_size=1, activation=activation, name="expand")
            x = expand(x, train)
        x = layer(
            line.expanded,
            kernel_size=line.kernel_size,
            stride=self.stride,
            rate=self.rate,
            groups=line.expanded,
            activation=activation,
            name="depthwise",
        )(x, train)
        if line.squeeze:
            x = SqueezeExcitation(dtype=self.dtype, name="squeeze")(x)
        x = layer(line.features, kernel_size=1, activation=None, name="project")(x, train)
        has_shortcut = line.stride == 1 and inputs.shape[-1] == line.features
        return x + inputs if has_shortcut else x


class MobileNetV3(Network):
    """MobileNetV3-Large up to its last convolution, to 960 channels.

    Parameters: "stem", "bottleneck1" … "bottleneck15" (see `SqueezedResidual`) and "top", each with
    "convolution" and "norm".

    Attributes:
      width_multiplier: factor of all channels, which are rounded to multiples of 8.
      lines: the bottlenecks of the paper's table 1.
      norm: normalisation of all layers; the public weights have epsilon 1e-3.
    """

    width_multiplier: float = 1.0
    lines: tuple[Bottleneck, ...] = LARGE
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the last map at each stride.

        Args:
          images: [batch, height, width, channels].
          output_stride: 8, 16 or 32.
          multi_grid: None, or a rate for each bottleneck from the last stride on (the last three),
            multiplied by the rate that the output stride gives. torchvision's DeepLab v3 has
            (1, 1, 1): a stage without its stride has the larger rate in all bottlenecks.
          train: whether norms use the batch's statistics.

        Returns:
          "stem", "stage1" … "stage4": the last bottleneck's output at stride 2, 4, 8, 16 and 32,
            with 16, 24, 40, 112 and 160 channels · the multiplier.
          "features": the last convolution's output, six times as many channels as "stage4".
          "low_level": stage1.
          "auxiliary": the first bottleneck's output at stride 8, which torchvision's auxiliary
            head reads.

        Raises:
          ValueError: `output_stride` or `multi_grid` does not fit.
        """

        def sized(features: int) -> int:
            return multiplied(features, self.width_multiplier, 8)

        strides = [line.stride for line in self.lines]
        last_stage = max(i for i, stride in enumerate(strides) if stride > 1)
        check_multi_grid(multi_grid, length=len(strides) - last_stage)
        units = atrous_units([2, *strides], output_stride=output_stride)[1:]

        layer = functools.partial(
            ConvolutionNorm, activation=jax.nn.hard_swish, norm=self.norm, dtype=self.dtype
        )
        x = layer(sized(16), stride=2, name="stem")(images, train)
        reached, maps = 2, {}
        for i, (line, unit) in enumerate(zip(self.lines, units, strict=True)):
            rate = unit.rate
            if multi_grid and i >= last_stage:
                rate = unit.rate_after * multi_grid[i - last_stage]
            block = SqueezedResidual(
                replace(line, expanded=sized(line.expanded), features=sized(line.features)),
                stride=unit.stride,
                rate=rate,
                norm=self.norm,
                dtype=self.dtype,
                name=f"bottleneck{i + 1}",
            )
            x = block(x, train)
            reached *= line.stride
            if reached == 8:
                maps.setdefault("auxiliary", x)
            maps[STRIDES[reached]] = x  # overwritten by the next bottleneck at this stride
        x = layer(6 * x.shape[-1], kernel_size=1, name="top")(x, train)
        return {**maps, "low_level": maps["stage1"], "features": x}
