"""MobileNetV2 without its classifier: Sandler et al., "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018 (arXiv:1801.04381), dilated as in TensorFlow's DeepLab.
"""

import functools
from typing import Any, Literal

import flax.linen as nn

from segjax.models.layers import ConvolutionNorm, atrous_units, check_multi_grid
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.initializers import truncated_normal

LowLevel = Literal["depthwise", "stage1"]

# TensorFlow initialises so in mobilenet.training_scope; the paper does not say how.
initializer = truncated_normal(0.09)
# The map of each stride that the strides in table 2 give; a smaller output stride keeps its name.
STRIDES = {2: "stem", 4: "stage1", 8: "stage2", 16: "stage3", 32: "stage4"}


def multiplied(features: int, multiplier: float, divisor: int) -> int:
    """Rounds features · multiplier to a multiple of `divisor` that is at least 90 % of it."""
    exact = features * multiplier
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * exact else rounded + divisor


class InvertedResidual(nn.Module):
    """Expansion 1×1 → depthwise 3×3 → linear projection 1×1 (figure 3b, table 1).

    Returns the block's output and its depthwise map. With `expansion` 1 there is no "expand".
    """

    features: int
    expansion: int
    stride: int
    rate: int
    add_input: bool
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        layer = functools.partial(
            ConvolutionNorm,
            activation=nn.relu6,
            norm=self.norm,
            kernel_init=initializer,
            dtype=self.dtype,
        )
        inputs = x
        if self.expansion > 1:
            x = layer(self.expansion * x.shape[-1], kernel_size=1, name="expand")(x, train)
        depthwise = layer(
            x.shape[-1], stride=self.stride, rate=self.rate, groups=x.shape[-1], name="depthwise"
        )(x, train)
        x = layer(self.features, kernel_size=1, activation=None, name="project")(depthwise, train)
        return x + inputs if self.add_input else x, depthwise


class MobileNetV2(Network):
    """MobileNetV2 up to its last bottleneck, or up to the 1×1 convolution to 1280 channels.

    TensorFlow's DeepLab reads the last bottleneck's output ("layer_18" in TensorFlow's numbering,
    which counts the stem), segmentation-models-pytorch's the 1280 channels. Parameters: "stem",
    "expanded_conv_0" … "expanded_conv_16" with "expand" (not in 0), "depthwise" and "project", and
    with `top_features` "top", each with "convolution" and "norm"; TensorFlow's names are "Conv",
    "expanded_conv" and "expanded_conv_1" ….

    Attributes:
      width_multiplier: factor of all channels.
      divisor: channels are rounded to multiples of this: 1 in TensorFlow DeepLab's narrow models,
        8 in the classifiers of TensorFlow and torchvision. Width 1 is the same with both.
      stages: expansion, features, units and stride of each line of the paper's table 2.
      top_features: channels of the 1×1 convolution with ReLU6 after the last bottleneck; None
        leaves it out.
      low_level: map of stride 4 for DeepLab v3+'s decoder: "depthwise", 144 channels in the last
        bottleneck at that stride (TensorFlow), or "stage1", that bottleneck's output (SMP).
      norm: normalisation of all layers; TensorFlow's batch norm has epsilon 1e-3.
    """

    width_multiplier: float = 1.0
    divisor: int = 1
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    top_features: int | None = None
    low_level: LowLevel = "depthwise"
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the last map at each stride, and the depthwise map for DeepLab v3+.

        Args:
          images: [batch, height, width, channels]; in [−1, 1] for TensorFlow's weights.
          output_stride: 8, 16 or 32.
          multi_grid: None, or a rate for each bottleneck from the last stride on (table 2's last
            four), multiplied by the rate that the output stride gives. TensorFlow's has none.
          train: whether norms use the batch's statistics.

        Returns:
          "stem", "stage1" … "stage4": the last bottleneck's output at stride 2, 4, 8, 16 and 32,
            with 16, 24, 32, 96 and 320 channels · the multiplier.
          "features": the last of them, or the 1×1 convolution's output.
          "auxiliary": the bottleneck before the last stride, 96 channels.
          "low_level": see `low_level`; by default the depthwise map of expanded_conv_2, TensorFlow
            DeepLab's "layer_4/depthwise_output".

        Raises:
          ValueError: `output_stride` or `multi_grid` does not fit.
        """
        table = [
            (
                expansion,
                multiplied(features, self.width_multiplier, self.divisor),
                stride if i == 0 else 1,
            )
            for expansion, features, units, stride in self.stages
            for i in range(units)
        ]
        strides = [stride for _, _, stride in table]
        last_stage = max(i for i, stride in enumerate(strides) if stride > 1)
        check_multi_grid(multi_grid, length=len(table) - last_stage)
        units = atrous_units([2, *strides], output_stride=output_stride)[1:]

        layer = functools.partial(
            ConvolutionNorm,
            activation=nn.relu6,
            norm=self.norm,
            kernel_init=initializer,
            dtype=self.dtype,
        )
        stem_features = multiplied(32, self.width_multiplier, self.divisor)
        x = layer(stem_features, stride=2, name="stem")(images, train)
        reached, maps = 2, {}
        for i, ((expansion, features, stride), unit) in enumerate(zip(table, units, strict=True)):
            if i == last_stage:
                maps["auxiliary"] = x
            rate = unit.rate
            if multi_grid and i >= last_stage:
                rate = unit.rate_after * multi_grid[i - last_stage]
            x, depthwise = InvertedResidual(
                features,
                expansion=expansion,
                stride=unit.stride,
                rate=rate,
                # The stride in table 2 decides, so every output stride has the same shortcuts.
                add_input=stride == 1 and features == x.shape[-1],
                norm=self.norm,
                dtype=self.dtype,
                name=f"expanded_conv_{i}",
            )(x, train)
            reached *= stride
            if reached == 4:
                maps["low_level"] = depthwise
            maps[STRIDES[reached]] = x  # overwritten by the next bottleneck at this stride
        if self.low_level == "stage1":
            maps["low_level"] = maps["stage1"]
        if self.top_features is not None:
            x = layer(self.top_features, kernel_size=1, name="top")(x, train)
        return {**maps, "features": x}
