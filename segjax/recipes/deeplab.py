"""The DeepLab papers' protocols: crops, augmentation, prediction, evaluation.

Chen et al.: v1 (arXiv:1412.7062), v2 (1606.00915), v3 (1706.05587), v3+ (1802.02611). What differs
from data set to data set and from version to version is a field here, set in
`experiments/deeplab/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from segjax.data.augmentation.photometric import PhotometricDistortion
from segjax.data.augmentation.semantic import Normalize, Warp
from segjax.data.sources.catalog import describe_dataset
from segjax.data.sources.semantic import open_dataset
from segjax.evaluation.metrics import BoundaryIou, TrimapIou
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.views import View, scales_and_flips
from segjax.losses.semantic import SemanticLoss
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.recipes.deeplab_networks import NetworkConfig
from segjax.recipes.initial import InitialConfig
from segjax.tasks.semantic import SemanticTask
from segjax.training.configuration import ExperimentConfig
from segjax.training.experiment import Experiment


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images."""

    crop: tuple[int, int] = (513, 513)
    """Height and width; smaller images are padded with the mean, and their labels with 255."""
    scale: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = 0.25
    """Between the scales that are drawn from; None draws from all (torchvision)."""
    flip: bool = True
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue (mmsegmentation)."""
    max_class_share: float | None = None
    """Draw another crop where one class has more of its labelled pixels (mmsegmentation: 0.75)."""


@dataclass(frozen=True)
class PredictionConfig:
    """How whole images are predicted; may differ between evaluations of one run."""

    output_stride: int | None = None
    """None takes that of training; v3 and v3+ train at 16 and evaluate at 8."""
    size: tuple[int, int] = (513, 513)
    """Images are padded to it at the bottom and right, larger ones to the next multiple of 16 plus
    one; or the size of a sliding window."""
    window_stride: tuple[int, int] | None = None
    """Slide a window of `size` in such steps over each image; None takes images whole."""
    scales: tuple[float, ...] = (1.0,)
    """Of the images over which probabilities are averaged; the papers': 0.5 to 1.75 by 0.25."""
    flip: bool = False
    """Average over the mirror image as well."""
    boundaries: bool = False
    """Score boundary IoU and the IoU of trimaps too."""
    refine: bool = False
    """Refine the probabilities by the fully connected CRF (v1, v2)."""
    crf: CrfConfig = CrfConfig()

    @property
    def covering(self) -> WholeImage | SlidingWindow:
        if self.window_stride is None:
            return WholeImage(self.size, multiple=16)
        return SlidingWindow(self.size, self.window_stride)

    @property
    def views(self) -> tuple[View, ...]:
        return scales_and_flips(self.scales, flip=self.flip)


@dataclass(frozen=True, kw_only=True)
class DeepLabConfig(ExperimentConfig):
    """What the experiments of the DeepLab line have in common."""

    network: NetworkConfig
    initial: InitialConfig = InitialConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: PredictionConfig = PredictionConfig()


def training_transforms(augment: AugmentConfig, normalize: Normalize) -> tuple:
    """From an example to a normalised crop and its labels."""
    steps = [PhotometricDistortion()] if augment.photometric else []
    crop = Warp(
        augment.crop,
        scale=augment.scale,
        scale_step=augment.scale_step,
        flip_horizontal=augment.flip,
        border="constant",
        fill=normalize.mean,
        cat_max_ratio=augment.max_class_share,
    )
    return (*steps, crop, normalize)


def deeplab_task(config: DeepLabConfig, dataset: str) -> SemanticTask:
    """The task for a network and a data set, which need not be prepared."""
    classes, channels = describe_dataset(dataset)
    model = config.network.model(len(classes))
    prediction = config.prediction
    evaluation_model = None
    if prediction.output_stride is not None:
        evaluation_model = model.clone(output_stride=prediction.output_stride)
    boundaries = (BoundaryIou(len(classes)), TrimapIou(len(classes)))
    return SemanticTask(
        model=model,
        classes=classes,
        channels=channels,
        covering=prediction.covering,
        preprocess=config.network.normalize,
        loss_function=config.loss,
        metrics=boundaries if prediction.boundaries else (),
        evaluation_model=evaluation_model,
        views=prediction.views,
        refine=partial(refine_probabilities, config=prediction.crf) if prediction.refine else None,
        # Street scenes have none: their class 0 is the sky or the road.
        background=0 if classes[0] == "background" else None,
    )


def deeplab_experiment(
    config: DeepLabConfig, dataset: str, *, train: str, evaluation: Mapping[str, str]
) -> Experiment:
    """Builds the experiment on splits of a prepared data set.

    Args:
      evaluation: name → split, the one scored along the way first.
    """
    open_split = partial(open_dataset, dataset, data_dir=config.data_dir)
    task = deeplab_task(config, dataset)
    return Experiment(
        task=task,
        train=partial(open_split, train),
        transforms=training_transforms(config.augment, config.network.normalize),
        evaluation={name: partial(open_split, split) for name, split in evaluation.items()},
        best_metric="mean_iou",
        initialize=partial(
            config.initial.initialize,
            normalize=config.network.normalize,
            backbone=task.model.backbone,
        ),
    )
