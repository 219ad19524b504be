"""The U-Net paper's protocol: tiles, augmentation, weight map, prediction (arXiv:1505.04597).

Fields here hold the numbers that differ between data sets; `experiments/unet/` sets them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np

from segjax.data.augmentation.photometric import GreyValues
from segjax.data.augmentation.semantic import CropTruth, Standardize, Warp
from segjax.data.augmentation.weight_map import AddWeightMap
from segjax.data.instances import SeparateTouching, close_gaps, label_components
from segjax.data.sources.splits import Splits
from segjax.evaluation.metrics import CellTracking, NegativeLogLikelihood
from segjax.inference.tiling import Tiling
from segjax.inference.views import (
    View,
    rotations_and_flips,
    seven_rotated_versions,
)
from segjax.losses.semantic import SemanticLoss
from segjax.models.normalization import NormName
from segjax.models.unet import UNet, input_size_for, output_size
from segjax.recipes.network_config import configures, module_of
from segjax.tasks.semantic import SemanticTask
from segjax.training.configuration import ExperimentConfig
from segjax.training.experiment import Experiment


@configures(UNet)
@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The network; see `segjax.models.UNet`. The defaults are the paper's."""

    norm: NormName | None = None
    """Norm between each 3×3 convolution and its ReLU; the paper has none."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters and losses stay float32."""
    tile: int = 388
    """Side of the output of one pass, in training and in prediction."""

    if TYPE_CHECKING:  # for the fields that `configures` adds

        def __init__(self, **settings: Any): ...

        def __getattr__(self, name: str) -> Any: ...

    def model(self, num_classes: int, *, network: type[UNet] = UNet) -> UNet:
        """Makes the network for this number of classes.

        Args:
          network: class of the network, such as a subclass with other skip connections.
        """
        dtype = jnp.bfloat16 if self.bfloat16 else None
        return module_of(self, network, num_classes, norm=self.norm, dtype=dtype)

    @property
    def training_sides(self) -> tuple[int, int]:
        """Sides of the images and of the labels of a batch.

        Raises:
          ValueError: the network has no output of `tile` pixels; names the next one it has.
        """
        side = input_size_for(self.tile, depth=self.depth, padding=self.padding)
        found = output_size(side, depth=self.depth, padding=self.padding)
        if found != self.tile:
            raise ValueError(
                f"a U-Net of depth {self.depth} with {self.padding} padding has no output of "
                f"{self.tile} pixels; the next larger is {found}"
            )
        return side, found

    @property
    def tiling(self) -> Tiling:
        """How prediction covers an image: exactly as one pass over all of it would, except with
        group norm, whose statistics are those of a tile."""
        side, tile = self.training_sides
        multiple = 2**self.depth
        if self.padding == "SAME":
            # An output that begins at a multiple sees at most 6·2**depth − 2 pixels beyond itself:
            # on the way down and up again, two pixels a level and what rounding to windows adds.
            side = tile + 2 * 6 * multiple
        return Tiling((side, side), (tile, tile), multiple=multiple)


@dataclass(frozen=True)
class UNetAugmentConfig:
    """Random changes of training tiles: shift and rotation, elastic deformation, grey values
    (section 3.1). Amounts beyond the elastic grid are not in the paper."""

    rotation: float = 180.0
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    elastic_sigma: float = 10.0
    """Standard deviation in pixels of the displacements on a 3×3 grid."""
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.0


@dataclass(frozen=True)
class WeightMapConfig:
    """The pixel weights of equation 2 and the border between touching cells (section 3)."""

    w0: float = 10.0
    """Zero turns the separating term off."""
    sigma: float = 5.0
    class_weights: tuple[float, float] | None = (1.0, 1.0)
    """w_c of background and cell. To balance a training set, pixels / (2 · pixels of the class),
    from the frequencies that `segjax data check` counts; None balances each tile by itself, which
    gives the few pixels of a rare class in a tile very large weights."""
    gap: int = 2
    """Pixels of background drawn between touching cells; the paper does not say how many."""


@dataclass(frozen=True)
class UNetPredictionConfig:
    """How whole images are predicted."""

    average_over: Literal["one", "seven", "eight"] = "one"
    """Views whose probabilities are averaged: the image alone, the paper's seven rotated versions
    of it, or all eight rotations and flips."""
    min_cell_size: int = 30
    """Predicted cells of fewer pixels are dropped."""

    @property
    def views(self) -> tuple[View, ...]:
        views = {
            "one": (View(),),
            "seven": seven_rotated_versions(),
            "eight": rotations_and_flips(),
        }
        return views[self.average_over]


@dataclass(frozen=True)
class CellInstances:
    """Turns cell probabilities into instances: connected parts, grown over the drawn gaps.

    The "labels" are then those of the instances, so that a gap drawn for training does not count
    as background where whole cells are scored.
    """

    gap: int
    min_size: int

    def __call__(self, probabilities: np.ndarray) -> dict:
        cells = probabilities.argmax(axis=-1) == 1
        instances = label_components(cells, min_size=self.min_size)
        if self.gap:
            instances = close_gaps(instances, width=self.gap)
        return {"instances": instances, "labels": (instances > 0).astype(np.uint8)}


def training_transforms(
    network: UNetConfig,
    augment: UNetAugmentConfig,
    weights: WeightMapConfig | None = None,
) -> tuple[Callable, ...]:
    """From an example to an input tile and the labels of its output.

    Args:
      weights: for data sets with instances; None weighs all pixels alike.
    """
    side, tile = network.training_sides
    steps = []
    if weights is not None and weights.gap:
        steps.append(SeparateTouching(weights.gap))
    steps += [
        Standardize(),
        Warp(
            (side, side),
            rotation=augment.rotation,
            scale=augment.scale,
            flip_horizontal=augment.flip,
            flip_vertical=augment.flip,
            elastic_sigma=augment.elastic_sigma,
            interpolation="bicubic",
        ),
        GreyValues(
            brightness=augment.brightness,
            contrast=augment.contrast,
            gamma=augment.gamma,
            noise=augment.noise,
        ),
    ]
    if weights is not None:
        steps.append(
            AddWeightMap(w0=weights.w0, sigma=weights.sigma, class_weights=weights.class_weights)
        )
    return (*steps, CropTruth((tile, tile), keep=("labels", "weights")))


def segmentation_task(
    network: UNetConfig,
    classes: tuple[str, ...],
    channels: int,
    *,
    prediction: UNetPredictionConfig,
    loss: SemanticLoss,
    metrics: tuple = (),
    decode: Callable | None = None,
) -> SemanticTask:
    """Builds the task for these classes and images of so many channels.

    Its metrics include the negative log-likelihood, which is the loss without pixel weights.
    """
    return SemanticTask(
        model=network.model(len(classes)),
        classes=classes,
        channels=channels,
        covering=network.tiling,
        preprocess=Standardize(),
        loss_function=loss,
        metrics=(NegativeLogLikelihood(), *metrics),
        views=prediction.views,
        decode=decode,
    )


@dataclass(frozen=True)
class UNetExperimentConfig(ExperimentConfig):
    """What the experiments with the U-Net have in common."""

    network: UNetConfig = UNetConfig()
    augment: UNetAugmentConfig = UNetAugmentConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: UNetPredictionConfig = UNetPredictionConfig()


def unet_experiment(
    config: UNetExperimentConfig,
    splits: Splits,
    *,
    best_metric: str,
    minimize: bool = False,
    weights: WeightMapConfig | None = None,
    metrics: tuple = (),
    decode: Callable | None = None,
) -> Experiment:
    """Builds the experiment on splits of any data set.

    Args:
      best_metric, minimize: rank the checkpoints; see `Experiment`.
      weights: weight map, for data sets with instances; None weighs all pixels alike.
      metrics: scores besides those of every semantic task.
      decode: instances from probabilities, such as `CellInstances`.
    """
    return Experiment(
        task=segmentation_task(
            config.network,
            splits.classes,
            splits.channels,
            prediction=config.prediction,
            loss=config.loss,
            metrics=metrics,
            decode=decode,
        ),
        train=splits.train,
        transforms=training_transforms(config.network, config.augment, weights),
        evaluation=splits.evaluation,
        best_metric=best_metric,
        minimize=minimize,
    )


@dataclass(frozen=True)
class CellExperimentConfig(UNetExperimentConfig):
    """What the experiments on separate cells have in common."""

    weight_map: WeightMapConfig = WeightMapConfig()


def cell_experiment(config: CellExperimentConfig, splits: Splits) -> Experiment:
    """Builds an experiment that tells cells apart; SEG ranks its checkpoints."""
    decode = CellInstances(gap=config.weight_map.gap, min_size=config.prediction.min_cell_size)
    return unet_experiment(
        config,
        splits,
        best_metric="seg",
        weights=config.weight_map,
        metrics=(CellTracking(),),
        decode=decode,
    )
