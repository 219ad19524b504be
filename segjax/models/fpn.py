"""Feature pyramid network: Lin et al., CVPR 2017 (arXiv:1612.03144)."""

from typing import Any

import flax.linen as nn

from segjax.models.layers import ConvolutionNorm
from segjax.models.normalization import Norm
from segjax.ops.initializers import lecun_uniform
from segjax.ops.resize import upsample_nearest

# Caffe2's XavierFill, uniform by fan-in: torchvision and detectron2 initialise the pyramid so.
xavier = lecun_uniform


class FeaturePyramid(nn.Module):
    """Pyramid levels P2 … P5 from a backbone's stages C2 … C5, and P6 for the RPN (figure 3).

    Parameters: "lateral2" … "lateral5" (1×1) and "output2" … "output5" (3×3), each with
    "convolution", and with "norm" unless it is None.

    Attributes:
      features: channels of every level.
      norm: normalisation after each convolution; None gives biases instead, as in the paper.
    """

    features: int = 256
    norm: Norm | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, stages, train: bool = False):
        """Maps C2 … C5, each [batch, height, width, channels], to the list of P2 … P6.

        P6 is every second position of P5, section 4.1's "stride two subsampling".
        """
        shared = {
            "activation": None,
            "norm": self.norm,
            "kernel_init": xavier,
            "dtype": self.dtype,
        }
        levels, above = [], None
        for number, stage in reversed(list(enumerate(stages, 2))):
            lateral = ConvolutionNorm(
                self.features, kernel_size=1, name=f"lateral{number}", **shared
            )
            x = lateral(stage, train)
            if above is not None:
                x = x + upsample_nearest(above, x.shape[1:3])
            above = x
            output = ConvolutionNorm(self.features, name=f"output{number}", **shared)
            levels.insert(0, output(x, train))
        return [*levels, levels[-1][:, ::2, ::2]]
