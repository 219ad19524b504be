"""The DeepLab papers' protocols: crops, augmentation, prediction, evaluation.

Chen et al.: v1 (arXiv:1412.7062), v2 (1606.00915), v3 (1706.05587), v3+ (1802.02611). Fields here
hold what differs between data sets and versions; `experiments/deeplab/` sets them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from segjax.data.augmentation.photometric import PhotometricDistortion
from segjax.data.augmentation.semantic import Normalize, Warp
from segjax.data.sources.splits import Splits, prepared_splits
from segjax.evaluation.metrics import BoundaryIou, TrimapIou
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.views import View, scales_and_flips
from segjax.losses.semantic import SemanticLoss
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.recipes.initial import InitialConfig
from segjax.recipes.network_config import NetworkConfig
from segjax.tasks.semantic import SemanticTask
from segjax.training.configuration import ExperimentConfig, TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class DeepLabAugmentConfig:
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
class DeepLabPredictionConfig:
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
class DeepLabExperimentConfig(ExperimentConfig):
    """What the experiments of the DeepLab line have in common."""

    network: NetworkConfig
    initial: InitialConfig = InitialConfig()
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig()


def training_transforms(augment: DeepLabAugmentConfig, normalize: Normalize) -> tuple:
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


def deeplab_task(
    config: DeepLabExperimentConfig, classes: tuple[str, ...], channels: int
) -> SemanticTask:
    """Builds the task for these classes and images of so many channels."""
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
        # Street scenes have no background: their class 0 is the sky or the road.
        background=0 if classes[0] == "background" else None,
    )


def deeplab_experiment(config: DeepLabExperimentConfig, splits: Splits) -> Experiment:
    """Builds the experiment on splits of any data set."""
    task = deeplab_task(config, splits.classes, splits.channels)
    return Experiment(
        task=task,
        train=splits.train,
        transforms=training_transforms(config.augment, config.network.normalize),
        evaluation=splits.evaluation,
        best_metric="mean_iou",
        initialize=partial(
            config.initial.initialize,
            normalize=config.network.normalize,
            backbone=task.model.backbone,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class VocConfig(DeepLabExperimentConfig):
    """What the experiments on VOC 2012 have in common."""

    training_set: Literal["train", "train_aug", "trainval", "coco"] = "train_aug"
    """VOC's 1,464 images; the 10,582 with SBD's annotations; all with published labels, for the
    test server (val is then no held-out set); or COCO's with VOC's classes (pre-training)."""


def voc_experiment(config: VocConfig) -> Experiment:
    """Builds the experiment; it is scored on VOC's "val", or COCO's in pre-training."""
    name, train = "voc2012", config.training_set
    if train == "coco":
        name, train = "coco_voc", "train"
    return deeplab_experiment(config, prepared_splits(name, data_dir=config.data_dir, train=train))


@dataclass(frozen=True, kw_only=True)
class CityscapesConfig(DeepLabExperimentConfig):
    """What the experiments on Cityscapes have in common: the protocol of v3 and v3+."""

    train: TrainConfig = TrainConfig(
        num_steps=90_000, batch_size=16, eval_every=10_000, eval_batch_size=1, checkpoint_every=1000
    )
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(crop=(769, 769))
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig(size=(1025, 2049))


def cityscapes_experiment(config: CityscapesConfig) -> Experiment:
    """Builds the experiment: trained on the finely annotated "train", scored on "val"."""
    return deeplab_experiment(config, prepared_splits("cityscapes", data_dir=config.data_dir))


def detectron2_optimizer() -> OptimizerConfig:
    """Returns detectron2's settings for DeepLab: warm-up times poly, norms without decay."""
    return OptimizerConfig(
        learning_rate=0.01,
        reference_batch_size=16,
        weight_decay=1e-4,
        decayed=r"(kernel|convolution/bias|logits/bias)$",
        warmup_steps=1000,
    )


# detectron2 crops 512 × 1024 from images whose shorter side is drawn from 512 to 2048.
DETECTRON2_AUGMENT = DeepLabAugmentConfig(crop=(512, 1024), scale=(0.5, 2.0), scale_step=0.25)
