"""The last layers of all DeepLabs: classifier, bilinear upsampling, torchvision's FCN head."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from segjax.models.layers import Convolution, ConvolutionNorm
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.initializers import normal
from segjax.ops.resize import resize_bilinear


def classifier(num_classes: int, *, kernel_size: int = 1, rate: int = 1, dtype: Any) -> Convolution:
    """Returns the convolution to class scores, "logits", initialised as in the released DeepLabs.

    Kernels come from N(0, 0.01²), biases are zero. TensorFlow's release cuts the Gaussian off at
    two standard deviations.
    """
    return Convolution(
        num_classes,
        kernel_size=kernel_size,
        rate=rate,
        use_bias=True,
        kernel_init=normal(0.01),
        dtype=dtype,
        name="logits",
    )


def upsampled(coarse_logits, size: tuple[int, int], *, align_corners: bool) -> dict:
    """Returns "logits", upsampled to this height and width, and "coarse_logits", in float32."""
    coarse_logits = coarse_logits.astype(jnp.float32)
    logits = resize_bilinear(coarse_logits, size, align_corners=align_corners)
    return {"logits": logits, "coarse_logits": coarse_logits}


class AuxiliaryHead(nn.Module):
    """3×3 to a quarter of the channels → dropout → classifier: torchvision's FCNHead.

    The papers have no auxiliary head. Parameters: "head", "logits".
    """

    num_classes: int
    dropout_rate: float = 0.1
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [batch, h, w, channels] to logits [batch, h, w, num_classes] in float32."""
        x = ConvolutionNorm(x.shape[-1] // 4, norm=self.norm, dtype=self.dtype, name="head")(
            x, train
        )
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return classifier(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)
