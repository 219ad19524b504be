"""Add a backbone: ConvNeXt for Mask R-CNN, trained here on generated cells, and for DeepLab v3+.

Paper     Liu et al., A ConvNet for the 2020s, CVPR 2022 (arXiv:2201.03545). On COCO, Mask R-CNN
          with ConvNeXt-T has box AP 46.2 and mask AP 41.7 (3× schedule, trained on ImageNet first).
Protocol  experiments/mask_rcnn/synthetic_cells.py with ConvNeXt-T at a quarter of its width, from
          scratch. A DeepLab v3+ experiment takes `DeepLabNetwork` as its network in the same way.
          `EncoderUNet` cannot take this backbone, which has no map of stride 2.
          The paper has output stride 32 alone. At 16 and 8, a 2×2 convolution that does not take
          its stride dilates the layers after it.
Data      synthetic_cells, made by code on first use.
Cost      not yet measured.
Command   python experiments/extending/convnext_backbone.py --workdir runs/convnext_backbone
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from segjax.commands.launch import run
from segjax.models.backbones.registry import BACKBONES, BackboneName
from segjax.models.layers import Convolution, atrous_units, check_multi_grid
from segjax.models.network import Network
from segjax.recipes.deeplab_networks import DeepLabV3PlusConfig
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.training.experiment import load_module
from segjax.training.experiment_files import experiments_folder

cells = load_module(experiments_folder() / "mask_rcnn" / "synthetic_cells.py")
layer_norm = partial(nn.LayerNorm, epsilon=1e-6)
normal = nn.initializers.normal(0.02)


class Block(nn.Module):
    """The block of figure 4, which a training example skips with probability `drop_rate`."""

    rate: int
    drop_rate: float
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs, train: bool = False):
        channels, shared = inputs.shape[-1], {"kernel_init": normal, "dtype": self.dtype}
        depthwise = {"kernel_size": 7, "groups": channels, "rate": self.rate, "use_bias": True}
        x = Convolution(channels, **depthwise, **shared)(inputs)
        x = layer_norm(dtype=self.dtype)(x)
        x = nn.gelu(nn.Dense(4 * channels, **shared)(x), approximate=False)
        x = nn.Dense(channels, **shared)(x)
        scale = self.param("scale", nn.initializers.constant(1e-6), (1, 1, 1, channels))
        drop = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train)
        return inputs + drop(x * scale.astype(x.dtype))


class ConvNeXt(Network):
    """ConvNeXt-T without its classifier; each map has a norm, as in the paper's detectors.

    Position i of a map at stride s covers the pixels from i · s to i · s + s − 1, so upsampling
    takes align_corners=False. The rate of stochastic depth grows linearly to `drop_rate`.
    """

    stage_sizes: tuple[int, int, int, int] = (3, 3, 9, 3)
    width: int = 96
    drop_rate: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, output_stride: int = 32, multi_grid=None, train: bool = False):
        """Computes the maps of each stage; see `segjax.models.backbones.registry.Backbone`."""
        check_multi_grid(multi_grid, length=self.stage_sizes[3])
        units = atrous_units((4, 2, 2, 2), output_stride=output_stride)
        drop_rates = iter(np.linspace(0, self.drop_rate, sum(self.stage_sizes)))
        x, maps = images, {}
        for stage, (size, unit) in enumerate(zip(self.stage_sizes, units, strict=True), 1):
            side, name = 4 if stage == 1 else 2, f"stage{stage}"
            downsample = nn.Conv(
                self.width * 2 ** (stage - 1),
                (side, side),
                strides=unit.stride,
                kernel_dilation=unit.rate,
                padding=[(0, unit.rate * (side - 1))] * 2,  # rounds sides up
                kernel_init=normal,
                dtype=self.dtype,
                name=f"{name}_downsample",
            )
            norm = layer_norm(dtype=self.dtype, name=f"{name}_downsample_norm")
            x = norm(downsample(x)) if stage == 1 else downsample(norm(x))
            grid = multi_grid if multi_grid and stage == 4 else [1] * size
            for i, rate in enumerate(grid, 1):
                rates = unit.rate_after * rate, float(next(drop_rates))
                x = Block(*rates, dtype=self.dtype, name=f"{name}_block{i}")(x, train)
            maps[name] = layer_norm(dtype=self.dtype, name=f"{name}_norm")(x)
        low_level, _, auxiliary, features = maps.values()
        return maps | {"low_level": low_level, "auxiliary": auxiliary, "features": features}


def make_convnext(*, width_multiplier, norm, dtype) -> ConvNeXt:
    del norm  # ConvNeXt has layer norms of its own
    return ConvNeXt(width=round(96 * width_multiplier), dtype=dtype)


BACKBONES["convnext"] = make_convnext
Name = BackboneName | Literal["convnext"]


@dataclass(frozen=True, kw_only=True)
class DeepLabNetwork(DeepLabV3PlusConfig):
    """DeepLab v3+ on ConvNeXt."""

    backbone: Name = "convnext"
    align_corners: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskRCNNNetwork(MaskRCNNConfig):
    """Mask R-CNN on ConvNeXt."""

    backbone: Name = "convnext"


@dataclass(frozen=True, kw_only=True)
class Config(cells.Config):
    """A small Mask R-CNN with ConvNeXt on generated cells."""

    network: MaskRCNNNetwork = MaskRCNNNetwork(
        **vars(cells.Config.network) | {"backbone": "convnext"}
    )


build = cells.build

if __name__ == "__main__":
    run(Config, build, __file__)
