"""The heads that run on each region: classes, boxes and masks (Mask R-CNN, figure 4).

A head maps [regions, height, width, channels]; the regions of all images share one axis.
"""

from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from segjax.models.backbones.resnet import ResidualBlock, StrideIn
from segjax.models.fpn import xavier
from segjax.models.layers import ConvolutionNorm, Dense, Unit, UpConvolution
from segjax.models.normalization import BatchNorm, Norm
from segjax.ops.classes import select_class
from segjax.ops.initializers import normal


class BoxHead(nn.Module):
    """Convolutions, then fully connected layers: Lin et al., 2017, section 4.2 ("2fc").

    Parameters: "convolution1" …, "fc1" ….

    Attributes:
      convolutions: number of 3×3 convolutions; 4 with one fully connected layer is "4conv1fc" of
        Wu and He, 2018.
      fully_connected: number of fully connected layers.
      features: channels of a convolution.
      fc_features: channels of a fully connected layer.
      norm: normalisation after each convolution; None gives biases instead.
    """

    convolutions: int = 0
    fully_connected: int = 2
    features: int = 256
    fc_features: int = 1024
    norm: Norm | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [regions, height, width, channels] to [regions, fc_features]."""
        chex.assert_rank(x, 4, custom_message="x")
        for i in range(1, self.convolutions + 1):
            x = ConvolutionNorm(
                self.features, norm=self.norm, dtype=self.dtype, name=f"convolution{i}"
            )(x, train)
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.fully_connected + 1):
            layer = Dense(self.fc_features, kernel_init=xavier, dtype=self.dtype, name=f"fc{i}")
            x = nn.relu(layer(x))
        return x


class ResidualHead(nn.Module):
    """Mask R-CNN's C4 head: ResNet's last stage, "res5" (He et al., 2016), on each region.

    Parameters: "block1" … "block3"; see `segjax.models.backbones.resnet.ResidualBlock`.

    Attributes:
      blocks: number of blocks; the first has stride 2.
      width: channels of the 3×3 convolutions in the ResNet's first stage.
      stride_in, groups, group_width: see `segjax.models.backbones.resnet.ResNet`.
    """

    blocks: int = 3
    width: int = 64
    stride_in: StrideIn = "3x3"
    groups: int = 1
    group_width: int = 64
    norm: Norm = BatchNorm
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [regions, 2h, 2w, channels] to [regions, h, w, 32 · width]."""
        chex.assert_rank(x, 4, custom_message="x")
        for i in range(self.blocks):
            x = ResidualBlock(
                8 * self.width,
                unit=Unit(stride=1 if i else 2, rate=1, rate_after=1),
                stride_in=self.stride_in,
                groups=self.groups,
                group_width=self.group_width,
                norm=self.norm,
                dtype=self.dtype,
                name=f"block{i + 1}",
            )(x, train)
        return x


class BoxPredictor(nn.Module):
    """Class logits and box deltas of each region (Fast R-CNN, section 2).

    Parameters: "class_logits", "deltas".

    Attributes:
      num_classes: number of classes, the background not counted.
      class_agnostic: whether a region has one box for all classes.
    """

    num_classes: int
    class_agnostic: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        """Maps [regions, features] to logits [regions, 1 + classes], background first, and deltas
        [regions, classes or 1, 4], both in float32.
        """
        chex.assert_rank(x, 2, custom_message="x")
        boxes = 1 if self.class_agnostic else self.num_classes
        logits = Dense(
            self.num_classes + 1, kernel_init=normal(0.01), dtype=self.dtype, name="class_logits"
        )
        deltas = Dense(4 * boxes, kernel_init=normal(0.001), dtype=self.dtype, name="deltas")
        return (
            logits(x).astype(jnp.float32),
            deltas(x).astype(jnp.float32).reshape(-1, boxes, 4),
        )


class MaskHead(nn.Module):
    """A small fully convolutional network on each region: figure 4, right.

    Parameters: "convolution1" …, "up_convolution", "logits".

    Attributes:
      outputs: number of masks for each region: one for each class, or 1 for all classes.
      convolutions: number of 3×3 convolutions before the up-convolution: 4, or 0 in C4.
      features: channels of all layers.
      norm: normalisation after each 3×3 convolution; None gives biases instead.
    """

    outputs: int
    convolutions: int = 4
    features: int = 256
    norm: Norm | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [regions, h, w, channels] to logits [regions, 2h, 2w, outputs] in float32."""
        chex.assert_rank(x, 4, custom_message="x")
        for i in range(1, self.convolutions + 1):
            x = ConvolutionNorm(
                self.features, norm=self.norm, dtype=self.dtype, name=f"convolution{i}"
            )(x, train)
        x = nn.relu(UpConvolution(self.features, dtype=self.dtype, name="up_convolution")(x))
        logits = ConvolutionNorm(
            self.outputs,
            kernel_size=1,
            activation=None,
            norm=None,
            kernel_init=normal(0.001),
            dtype=self.dtype,
            name="logits",
        )
        return logits(x).astype(jnp.float32)


class MLPMaskHead(nn.Module):
    """Masks by fully connected layers (table 2e): two of 1024 channels, then 28² for each output.

    Parameters: "fc1" …, "logits".

    Attributes:
      outputs: as in `MaskHead`.
      fully_connected: number of hidden layers.
      fc_features: channels of a hidden layer.
      resolution: side of the masks.
    """

    outputs: int
    fully_connected: int = 2
    fc_features: int = 1024
    resolution: int = 28
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Maps [regions, h, w, channels] to logits [regions, resolution, resolution, outputs]."""
        del train
        chex.assert_rank(x, 4, custom_message="x")
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.fully_connected + 1):
            layer = Dense(self.fc_features, kernel_init=xavier, dtype=self.dtype, name=f"fc{i}")
            x = nn.relu(layer(x))
        side = self.resolution
        x = Dense(
            side * side * self.outputs, kernel_init=normal(0.001), dtype=self.dtype, name="logits"
        )(x)
        return x.astype(jnp.float32).reshape(-1, side, side, self.outputs)


MaskLoss = Literal["sigmoid", "softmax"]


def mask_probabilities(logits, classes, *, loss: MaskLoss = "sigmoid"):
    """Computes the mask of each region's class.

    Args:
      logits: [regions, h, w, outputs]; one output serves all classes.
      classes: integers [regions], 1 … K. Background regions (0) return class 1's mask; ignore it.
      loss: the loss that the network was trained with: a sigmoid for each class, or a softmax over
        the background (output 0) and the classes.

    Returns:
      [regions, h, w].
    """
    chex.assert_rank(logits, 4, custom_message="logits")
    chex.assert_shape(classes, logits.shape[:1], custom_message="classes")
    chex.assert_type(classes, int, custom_message="classes")
    if loss == "softmax":
        return select_class(jax.nn.softmax(logits), classes)
    if logits.shape[-1] == 1:
        return jax.nn.sigmoid(logits[..., 0])
    return jax.nn.sigmoid(select_class(logits, jnp.maximum(classes, 1) - 1))
