"""The U-Net paper's protocol: tiles, augmentation, weight map, prediction (arXiv:1505.04597).

The fields here differ between data sets; `experiments/unet/` sets them.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

import numpy as np

from segjax.data.augmentation.photometric import GreyValues
from segjax.data.augmentation.semantic import CropTruth, Warp
from segjax.data.augmentation.weight_map import AddWeightMap
from segjax.data.instance_bands import Bands, close_gaps_in_bands, components_in_bands
from segjax.data.instances import SeparateTouching, close_gaps, label_components
from segjax.data.sources.splits import Splits
from segjax.evaluation.metrics import CellTracking, NegativeLogLikelihood
from segjax.inference.views import (
    View,
    rotations_and_flips,
    seven_rotated_versions,
)
from segjax.labels import BACKGROUND, background_class
from segjax.losses.semantic import SemanticLoss
from segjax.recipes.initial import InitialConfig
from segjax.recipes.unet_networks import EncoderUNetConfig, UNetConfig
from segjax.tasks.semantic import SemanticTask
from segjax.training.configuration import ExperimentConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class UNetAugmentConfig:
    """Augmentation of training tiles: random place, rotation, elastic deformation, grey values
    (section 3.1). The paper states only the elastic deformation in numbers."""

    rotation: float = 180.0
    """Largest angle in degrees, either way."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest magnification."""
    flip: bool = True
    """Mirror half of the tiles left to right, and half of them top to bottom."""
    elastic_sigma: float = 10.0
    """Standard deviation in pixels of the displacements on a 3×3 grid; 0 is off."""
    brightness: float = 0.1
    """Largest shift of the grey values, as a fraction of their range."""
    contrast: float = 0.2
    """Largest relative change of the deviations from the mean grey value."""
    gamma: float = 0.2
    """The exponent of the grey values lies between 1 / (1 + gamma) and 1 + gamma."""
    noise: float = 0.0
    """Largest standard deviation of Gaussian noise, as a fraction of the range."""
    class_balanced: float = 0.0
    """Share of the tiles that centre on a pixel of a class, drawn evenly from the image's classes,
    so that rare classes are seen more often (nnU-Net: 0.33); 0 is off. These tiles may reach beyond
    the image, which is mirrored there."""


@dataclass(frozen=True)
class WeightMapConfig:
    """Pixel weights of the loss (equation 2) and the border between touching cells (section 3)."""

    w0: float = 10.0
    """Weight of the term that separates touching cells; 0 is off."""
    sigma: float = 5.0
    """Width of that term in pixels."""
    class_weights: tuple[float, float] | None = (1.0, 1.0)
    """w_c of background and cell. To balance the training set, take pixels / (2 · pixels of the
    class) from the frequencies that `segjax data check` prints. None balances each tile by itself,
    which can give very large weights to the few pixels of a rare class in a tile."""
    gap: int = 2
    """Width in pixels of the background drawn between touching cells; the paper does not give
    it."""


@dataclass(frozen=True)
class UNetPredictionConfig:
    """Prediction of whole images. `segjax evaluate` and `predict` can change it by `--set`."""

    average_over: Literal["one", "seven", "eight"] = "one"
    """Views whose probabilities are averaged: the image alone, the paper's seven rotated versions,
    or all eight rotations and flips."""
    min_cell_size: int = 30
    """Smallest predicted cell in pixels; smaller ones are dropped."""

    @property
    def views(self) -> tuple[View, ...]:
        """The rotations and flips to average over."""
        views = {
            "one": (View(),),
            "seven": seven_rotated_versions(),
            "eight": rotations_and_flips(),
        }
        return views[self.average_over]


@dataclass(frozen=True)
class CellInstances:
    """Turns cell probabilities into instances: connected components, grown over the drawn gaps.

    The "labels" follow from the instances, so that scores of whole cells do not count the gaps
    drawn for training as background.

    Attributes:
      gap: width in pixels of the gaps drawn for training.
      min_size: smallest instance in pixels.
    """

    gap: int
    min_size: int

    def __call__(self, probabilities: np.ndarray) -> dict:
        cells = probabilities.argmax(axis=-1) == 1
        instances = label_components(cells, min_size=self.min_size)
        if self.gap:
            instances = close_gaps(instances, width=self.gap)
        return {"instances": instances, "labels": (instances > 0).astype(np.uint8)}

    def instances_in_bands(self, labels: Bands) -> tuple[int, Bands]:
        """Separates the cells of an image that is larger than memory.

        Args:
          labels: yields the most probable classes, [rows, width] bands of the image; each call
            begins again.

        Returns:
          The number of cells, and a function that yields the bands of "instances".
        """
        count, bands = components_in_bands(
            lambda: (band == 1 for band in labels()), min_size=self.min_size
        )
        if not self.gap:
            return count, bands
        return count, lambda: close_gaps_in_bands(bands(), width=self.gap)


def training_transforms(
    network: UNetConfig | EncoderUNetConfig,
    augment: UNetAugmentConfig,
    weights: WeightMapConfig | None = None,
) -> tuple[Callable, ...]:
    """Returns the transforms that turn an example into an input tile and its output's labels.

    Args:
      network: sets the sides of the tile and of the labels, and normalises the image.
      augment: the augmentation.
      weights: the weight map, for data sets with instances; None weighs all pixels equally.
    """
    side, tile = network.training_sides
    steps = []
    if weights is not None and weights.gap:
        steps.append(SeparateTouching(weights.gap))
    steps += network.image_steps(
        Warp(
            (side, side),
            rotation=augment.rotation,
            scale=augment.scale,
            flip_horizontal=augment.flip,
            flip_vertical=augment.flip,
            elastic_sigma=augment.elastic_sigma,
            interpolation="bicubic",
            class_balanced=augment.class_balanced,
        ),
        GreyValues(
            brightness=augment.brightness,
            contrast=augment.contrast,
            gamma=augment.gamma,
            noise=augment.noise,
        ),
    )
    if weights is not None:
        steps.append(
            AddWeightMap(w0=weights.w0, sigma=weights.sigma, class_weights=weights.class_weights)
        )
    return (*steps, CropTruth((tile, tile), keep=("labels", "weights")))


def segmentation_task(
    network: UNetConfig | EncoderUNetConfig,
    classes: tuple[str, ...],
    channels: int,
    *,
    prediction: UNetPredictionConfig,
    loss: SemanticLoss,
    metrics: tuple = (),
    decode: Callable | None = None,
    background: str = BACKGROUND,
) -> SemanticTask:
    """Builds the task; its metrics include the negative log-likelihood, the unweighted loss.

    Args:
      network: the network.
      classes: the names of the classes.
      channels: number of channels of the images.
      prediction: the settings of prediction.
      loss: the loss.
      metrics: further metrics.
      decode: probabilities → instances, such as `CellInstances`.
      background: the name of the background; see `Splits`.
    """
    return SemanticTask(
        model=network.model(len(classes)),
        classes=classes,
        channels=channels,
        covering=network.tiling,
        preprocess=network.preprocess,
        loss_function=loss,
        metrics=(NegativeLogLikelihood(), *metrics),
        views=prediction.views,
        decode=decode,
        pixel_range=network.pixel_range if isinstance(network, EncoderUNetConfig) else None,
        background=background,
    )


@dataclass(frozen=True)
class UNetExperimentConfig(ExperimentConfig):
    """Settings common to the U-Net experiments."""

    network: UNetConfig | EncoderUNetConfig = UNetConfig()
    augment: UNetAugmentConfig = UNetAugmentConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: UNetPredictionConfig = UNetPredictionConfig()


@dataclass(frozen=True, kw_only=True)
class InitialUNetExperimentConfig(UNetExperimentConfig):
    """Settings common to the U-Net experiments that can start from trained weights."""

    initial: InitialConfig = InitialConfig()

    def resolved(self, given: Collection[str] = ()) -> Self:
        """Takes over the settings of the initial weights, and refuses those that contradict."""
        return replace(self, network=self.initial.resolve(self.network, given))


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
    """Builds the experiment on the splits of any data set.

    Args:
      config: the settings; an `InitialUNetExperimentConfig` may start from trained weights.
      splits: the data.
      best_metric, minimize: rank the checkpoints; see `Experiment`.
      weights: the weight map, for data sets with instances; None weighs all pixels equally.
      metrics: scores besides those of every semantic task.
      decode: probabilities → instances, such as `CellInstances`.
    """
    initialize = None
    if isinstance(config, InitialUNetExperimentConfig):
        initialize = partial(config.initial.initialize, network=config.network)
    return Experiment(
        task=segmentation_task(
            config.network,
            splits.classes,
            splits.channels,
            prediction=config.prediction,
            loss=config.loss,
            metrics=metrics,
            decode=decode,
            background=splits.background,
        ),
        train=splits.train,
        transforms=training_transforms(config.network, config.augment, weights),
        evaluation=splits.evaluation,
        best_metric=best_metric,
        minimize=minimize,
        orientation=splits.orientation,
        initialize=initialize,
    )


@dataclass(frozen=True)
class CellExperimentConfig(UNetExperimentConfig):
    """Settings common to the experiments that separate cells."""

    weight_map: WeightMapConfig = WeightMapConfig()


def cell_experiment(config: CellExperimentConfig, splits: Splits) -> Experiment:
    """Builds an experiment that separates cells; SEG ranks its checkpoints.

    Raises:
      ValueError: the classes are not the background and the cell, in this order.
    """
    background = background_class(splits.classes, splits.background)
    if len(splits.classes) != 2 or background not in (0, None):
        raise ValueError(
            "a network that separates cells has two classes, the background and the cell; found "
            f"{', '.join(splits.classes)}"
        )
    decode = CellInstances(gap=config.weight_map.gap, min_size=config.prediction.min_cell_size)
    return unet_experiment(
        config,
        splits,
        best_metric="seg",
        weights=config.weight_map,
        metrics=(CellTracking(),),
        decode=decode,
    )
