"""Configurations of the U-Net networks."""

import math
from collections.abc import Callable
from typing import Literal

from segjax.data.augmentation.normalization import StandardizeBands, StretchPercentiles
from segjax.data.augmentation.semantic import Normalize, Standardize
from segjax.inference.tiling import Tiling
from segjax.models.encoder_unet import EncoderUNet
from segjax.models.normalization import NormName
from segjax.models.unet import UNet, input_size_for, output_size
from segjax.recipes.deeplab_networks import BatchNormConfig
from segjax.recipes.network_config import (
    BackboneNetworkConfig,
    NetworkConfig,
    configures,
    module_of,
)

STRIDE = 32  # of the encoder's last map


@configures(UNet)
class UNetConfig(NetworkConfig):
    """The network; see `segjax.models.UNet`. The defaults are the paper's."""

    norm: NormName | None = None
    """Norm between each 3×3 convolution and its ReLU; the paper has none."""
    tile: int = 388
    """Side of the network's output in pixels, in training and in prediction."""
    normalization: Literal["image", "percentiles", "dataset"] = "image"
    """image: each image gets mean 0 and deviation 1. percentiles: of each band of an image, the
    percentiles 1 and 99.8 become 0 and 1, for fluorescence with few bright pixels. dataset: mean
    and deviation of each band over the training images, for images whose brightness tells
    something."""
    mean: tuple[float, ...] = ()
    """The mean of each band for "dataset"; `experiments/unet/folder.py` computes and records it."""
    std: tuple[float, ...] = ()
    """The standard deviation of each band for "dataset"."""

    def model(self, num_classes: int, *, network: type[UNet] = UNet) -> UNet:
        """Makes the network for this number of classes.

        Args:
          network: class of the network, such as a subclass with other skip connections.
        """
        return module_of(self, network, num_classes, norm=self.norm, dtype=self.dtype)

    @property
    def preprocess(self) -> Standardize | StandardizeBands | StretchPercentiles:
        """Normalises each image as a whole, before tiles are cut.

        Raises:
          ValueError: the normalisation is "dataset" without its mean and deviation.
        """
        if self.normalization == "image":
            return Standardize()
        if self.normalization == "percentiles":
            return StretchPercentiles()
        if not self.mean:
            raise ValueError(
                "network.normalization is dataset: give network.mean and network.std, one number "
                "for each band; experiments/unet/folder.py computes them"
            )
        return StandardizeBands(self.mean, self.std)

    def image_steps(self, *augmentation: Callable) -> tuple[Callable, ...]:
        """Returns the transforms of a training image: the normalisation and the augmentation."""
        return (self.preprocess, *augmentation)

    @property
    def training_sides(self) -> tuple[int, int]:
        """Sides of the images and of the labels in a batch.

        Raises:
          ValueError: the network cannot give an output of `tile` pixels; the message names the next
            larger one.
        """
        side = input_size_for(self.tile, depth=self.depth, padding=self.padding)
        found = output_size(side, depth=self.depth, padding=self.padding)
        if found != self.tile:
            raise ValueError(
                f"a U-Net of depth {self.depth} with {self.padding} padding has no output of "
                f"{self.tile} pixels (network.tile); the next larger is {found}"
            )
        return side, found

    @property
    def tiling(self) -> Tiling:
        """The tiling of an image in prediction. It equals one pass over the whole image, unless
        the norm is "group", which takes its statistics from each tile."""
        side, tile = self.training_sides
        multiple = 2**self.depth
        if self.padding == "SAME":
            # An output that begins at a multiple sees at most 6·2**depth − 2 pixels beyond itself:
            # two pixels for each level, down and up, and the rounding to pooling windows.
            side = tile + 2 * 6 * multiple
        return Tiling((side, side), (tile, tile), multiple=multiple)


@configures(EncoderUNet)
class EncoderUNetConfig(BackboneNetworkConfig):
    """A U-Net with an encoder that may start from weights of ImageNet; see
    `segjax.models.EncoderUNet`.

    Images are normalised as the weights expect (`pixels`), after the augmentation in training. A
    grey image is repeated in three channels, as in prediction with weights for photographs. Other
    bands are treated as R, G and B in turn, as is the first layer of the weights.
    """

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"] = "resnet34"
    """The encoder; left out, it follows the weights that `initial.name` names."""
    # As in PyTorch: trainings on a few images are too short for averages over thousands of steps.
    batch_norm: BatchNormConfig = BatchNormConfig(momentum=0.9)
    tile: int = 256
    """Side in pixels of the tiles, in training and in prediction: a multiple of 32."""
    margin: int = 96
    """Pixels around a tile that the network also sees in prediction. A wide margin costs time; with
    a narrow one, seams may show. From 311 on for ResNet-18, 543 for ResNet-34, 307 for ResNet-50,
    579 for ResNet-101 and 339 for MobileNetV2, tiles equal one pass over the whole image.
    `segjax evaluate RUN --set network.margin=320` changes it after the training."""

    def model(self, num_classes: int) -> EncoderUNet:
        """Makes the network for this number of classes."""
        backbone = self.backbone_module(self.backbone, self.batch_norm.layer)
        norm = self.batch_norm.head_layer
        return module_of(
            self, EncoderUNet, num_classes, backbone=backbone, norm=norm, dtype=self.dtype
        )

    @property
    def preprocess(self) -> Normalize:
        """Normalises images as the backbone's weights expect."""
        return self.normalize

    def image_steps(self, *augmentation: Callable) -> tuple[Callable, ...]:
        """Returns the transforms of a training image: the augmentation and the normalisation.

        The augmentation comes first: it varies the grey values of all channels by their common
        range, and the normalisation scales each channel on its own.
        """
        return (*augmentation, self.preprocess)

    @property
    def training_sides(self) -> tuple[int, int]:
        """Sides of the images and of the labels in a batch.

        Raises:
          ValueError: `tile` is no multiple of 32; the message names the next larger one.
        """
        if self.tile < 1 or self.tile % STRIDE:
            larger = max(math.ceil(self.tile / STRIDE), 1) * STRIDE
            raise ValueError(
                f"network.tile={self.tile}; expected a multiple of {STRIDE}, the stride of the "
                f"encoder's last map; the next larger is {larger}"
            )
        return self.tile, self.tile

    @property
    def tiling(self) -> Tiling:
        """The tiling of an image in prediction.

        Raises:
          ValueError: `tile` or `margin` does not fit.
        """
        side, tile = self.training_sides
        if self.margin < 0:
            raise ValueError(f"network.margin={self.margin}; expected 0 or more pixels")
        side += 2 * self.margin
        return Tiling((side, side), (tile, tile), multiple=STRIDE)
