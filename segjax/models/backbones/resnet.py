"""ResNet without its classifier: He et al., "Deep Residual Learning for Image Recognition", CVPR
2016 (arXiv:1512.03385), with DeepLab's atrous stages.

A stage's stride is in its first block, as in the paper, torchvision and detectron2. TensorFlow's
resnet_v1_beta and DeepLab v3's figure 3 have it in the last block of the stage before, so
TensorFlow's weights do not fit.
"""

import functools
from typing import Any, Literal, get_args

import flax.linen as nn

from segjax.models.layers import (
    ConvolutionNorm,
    Unit,
    atrous_units,
    check_multi_grid,
    max_pool,
)
from segjax.models.network import Network
from segjax.models.normalization import BatchNorm, Norm

Block = Literal["bottleneck", "basic"]
StrideIn = Literal["3x3", "1x1"]
Stem = Literal["7x7", "3x3x3", "v1c"]


class ResidualBlock(nn.Module):
    """One residual block (figure 5): two 3×3 convolutions, or 1×1 → 3×3 → 1×1.

    Parameters: "conv1", "conv2", ("conv3",) and, where the channels change, "shortcut", each with
    "convolution" and "norm".

    Attributes:
      features: channels of the 3×3 convolutions; a bottleneck's output has four times as many.
      unit: the block's stride and rates.
      block, stride_in, groups, group_width: see `ResNet`.
    """

    features: int
    unit: Unit
    block: Block = "bottleneck"
    stride_in: StrideIn = "3x3"
    groups: int = 1
    group_width: int = 64
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        layer = functools.partial(ConvolutionNorm, norm=self.norm, dtype=self.dtype)
        stride, rate, rate_after = self.unit
        inputs, features = x, self.features
        if self.block == "basic":
            x = layer(features, stride=stride, rate=rate, name="conv1")(x, train)
            x = layer(features, rate=rate_after, activation=None, name="conv2")(x, train)
        else:
            # After a strided 1×1 convolution, the 3×3 one already sees the coarser grid.
            first, second = (stride, 1) if self.stride_in == "1x1" else (1, stride)
            rate = rate_after if self.stride_in == "1x1" else rate
            inner = features * self.group_width // 64 * self.groups
            x = layer(inner, kernel_size=1, stride=first, name="conv1")(x, train)
            conv2 = layer(inner, stride=second, rate=rate, groups=self.groups, name="conv2")
            x = conv2(x, train)
            features *= 4
            x = layer(features, kernel_size=1, activation=None, name="conv3")(x, train)
        if inputs.shape[-1] != features:
            inputs = layer(
                features, kernel_size=1, stride=stride, activation=None, name="shortcut"
            )(inputs, train)
        return nn.relu(x + inputs)


class ResNet(Network):
    """ResNet with atrous stages.

    Parameters: "stem" (or "stem1" … "stem3") with "convolution" and "norm", and "stage1_block1" …;
    see `ResidualBlock`. Kernels are initialised by fan-out (He et al., 2015), as in torchvision.

    Attributes:
      stage_sizes: blocks of each of the four stages (the papers' block1 … block4).
      block: "bottleneck", or "basic" (two 3×3 convolutions).
      width: channels of the stem and of the first stage's 3×3 convolutions.
      stride_in: which convolution of a bottleneck has the stride: "3x3" (torchvision) or "1x1" (the
        paper and MSRA's weights, which detectron2 loads).
      stem: "7x7", or three 3×3 convolutions: of width, width and 2 · width channels in "3x3x3"
        (resnet_v1_beta and detectron2's DeepLab), of half the width twice and of width in "v1c"
        (mmsegmentation; He et al., 2019, arXiv:1812.01187, figure 2b).
      groups, group_width: ResNeXt (Xie et al., arXiv:1611.05431): number of groups of a
        bottleneck's 3×3 convolution, and channels of each where `width` is 64: 32 × 8d.
      num_stages: 4, or 3 without the last stage, which Mask R-CNN's C4 has in its heads.
      cascaded_stages: number of copies of stage 4 that follow it (DeepLab v3, section 3.2: block5 …
        block7). They take no stride; the rate doubles from each to the next.
      norm: normalisation of all layers; every public ResNet has epsilon 1e-5.
    """

    stage_sizes: tuple[int, int, int, int]
    block: Block = "bottleneck"
    width: int = 64
    stride_in: StrideIn = "3x3"
    stem: Stem = "7x7"
    groups: int = 1
    group_width: int = 64
    num_stages: Literal[3, 4] = 4
    cascaded_stages: int = 0
    norm: Norm = BatchNorm
    dtype: Any = None

    def __post_init__(self):
        for name, choices in (("block", Block), ("stride_in", StrideIn), ("stem", Stem)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise ValueError(f"{name} is one of {get_args(choices)}; got {value!r}")
        if self.num_stages not in (3, 4) or (self.num_stages == 3 and self.cascaded_stages):
            raise ValueError(
                f"num_stages is 4, or 3 without cascaded stages; got {self.num_stages!r} "
                f"with {self.cascaded_stages}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the maps of the stem and of every stage.

        Args:
          images: [batch, height, width, channels].
          output_stride: 8, 16 or 32.
          multi_grid: rates of the blocks of stage 4 and of each copy, multiplied by the stage's own
            rate (DeepLab v3, section 3.2.1: (1, 2, 4) at output stride 16 gives 2, 4, 8). With
            None, a convolution whose stride is not taken keeps the rate before it, as in
            torchvision: the map, subsampled, is that of the larger output stride. With rates,
            (1, 1, 1) included, only stage 3's does: a network trained at output stride 16 is then
            the same function at 8. In detectron2 and SMP none does.
          train: whether norms use the batch's statistics.

        Returns:
          "stem" (stride 2, before the max pooling), "stage1" … "stage4" and the copies' "stage5" ….
          "features" is the last stage, "low_level" stage1, "auxiliary" stage3.

        Raises:
          ValueError: `output_stride` or `multi_grid` does not fit.
        """
        check_multi_grid(multi_grid, length=self.stage_sizes[3])
        sizes = self.stage_sizes[: self.num_stages] + self.stage_sizes[3:] * self.cascaded_stages
        strides = [1] * sizes[0]
        for size in sizes[1:]:
            strides += [2] + [1] * (size - 1)
        units = iter(atrous_units([4, *strides], output_stride=output_stride)[1:])

        x = self._stem(images, train)
        maps = {"stem": x}
        x = max_pool(x, size=3, stride=2)
        for stage, size in enumerate(sizes, 1):
            for i in range(size):
                unit = next(units)
                if multi_grid and stage >= 4:
                    rate = unit.rate_after * multi_grid[i]
                    unit = Unit(unit.stride, rate, rate)
                x = ResidualBlock(
                    self.width * 2 ** (min(stage, 4) - 1),
                    unit=unit,
                    block=self.block,
                    stride_in=self.stride_in,
                    groups=self.groups,
                    group_width=self.group_width,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i + 1}",
                )(x, train)
            maps[f"stage{stage}"] = x
        return {
            **maps,
            "low_level": maps["stage1"],
            "auxiliary": maps["stage3"],
            "features": x,
        }

    def _stem(self, x, train):
        layer = functools.partial(ConvolutionNorm, norm=self.norm, dtype=self.dtype)
        if self.stem == "7x7":
            return layer(self.width, kernel_size=7, stride=2, name="stem")(x, train)
        inner = self.width if self.stem == "3x3x3" else self.width // 2
        x = layer(inner, stride=2, name="stem1")(x, train)
        x = layer(inner, name="stem2")(x, train)
        return layer(2 * inner, name="stem3")(x, train)


def resnet18(**attributes) -> ResNet:
    """Returns ResNet-18, with basic blocks: 11,176,512 parameters."""
    return ResNet(stage_sizes=(2, 2, 2, 2), block="basic", **attributes)


def resnet34(**attributes) -> ResNet:
    """Returns ResNet-34, with basic blocks: 21,284,672 parameters."""
    return ResNet(stage_sizes=(3, 4, 6, 3), block="basic", **attributes)


def resnet50(**attributes) -> ResNet:
    """Returns ResNet-50: 23,508,032 parameters."""
    return ResNet(stage_sizes=(3, 4, 6, 3), **attributes)


def resnet101(**attributes) -> ResNet:
    """Returns ResNet-101: 42,500,160 parameters."""
    return ResNet(stage_sizes=(3, 4, 23, 3), **attributes)


def resnext101(**attributes) -> ResNet:
    """Returns ResNeXt-101-32×8d: 86,742,336 parameters."""
    return ResNet(stage_sizes=(3, 4, 23, 3), groups=32, group_width=8, **attributes)
