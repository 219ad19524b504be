"""The DeepLab papers' protocols: crops, augmentation, prediction, evaluation.

Chen et al.: v1 (arXiv:1412.7062), v2 (1606.00915), v3 (1706.05587), v3+ (1802.02611). The fields
here differ between data sets and versions; `experiments/deeplab/` sets them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from segjax.data.augmentation.photometric import PhotometricDistortion
from segjax.data.augmentation.semantic import Normalize, Warp
from segjax.data.sources.splits import Splits, prepared_splits
from segjax.evaluation.metrics import BoundaryIou, TrimapIou
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.views import View, scales_and_flips
from segjax.labels import BACKGROUND
from segjax.losses.semantic import SemanticLoss
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.recipes.initial import BackboneExperimentConfig
from segjax.tasks.semantic import SemanticTask
from segjax.training.configuration import TrainConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class DeepLabAugmentConfig:
    """Augmentation of training images."""

    crop: tuple[int, int] = (513, 513)
    """Height and width of a crop. Smaller images are padded with the mean colour, their labels with
    255."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of the image's size."""
    scale_step: float | None = 0.25
    """Step between the factors to choose from; None draws any factor between (torchvision)."""
    flip: bool = True
    """Mirror half of the crops left to right."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue at random (mmsegmentation)."""
    max_class_share: float | None = None
    """Largest share of a crop's labelled pixels that one class may have; other crops are drawn
    again, up to ten times (mmsegmentation: 0.75)."""
    class_balanced: float = 0.0
    """Share of the crops that centre on a pixel of a class, drawn evenly from the image's classes,
    so that rare classes are seen more often (nnU-Net: 0.33); 0 is off. These crops may reach beyond
    the image, and max_class_share does not move them."""


@dataclass(frozen=True)
class DeepLabPredictionConfig:
    """Prediction of whole images. `segjax evaluate` and `predict` can change it by `--set`."""

    output_stride: int | None = None
    """Output stride of the network; None takes that of training. v3 and v3+ train at 16 and
    evaluate at 8."""
    size: tuple[int, int] = (513, 513)
    """Height and width to which images are padded at the bottom and right; larger sides are padded
    to the next multiple of 16 plus one. With window_stride, the size of the window."""
    window_stride: tuple[int, int] | None = None
    """Rows and columns between the windows that slide over an image (mmsegmentation); None predicts
    the image in one pass."""
    scales: tuple[float, ...] = (1.0,)
    """Image scales whose probabilities are averaged; the papers' are 0.5 to 1.75 in steps of
    0.25."""
    flip: bool = False
    """Average over the mirror image as well."""
    boundaries: bool = False
    """Also score the boundary IoU, and the mean IoU near object boundaries (trimaps; v2, v3+)."""
    refine: bool = False
    """Refine the probabilities by the fully connected CRF (v1, v2)."""
    crf: CrfConfig = CrfConfig()

    @property
    def covering(self) -> WholeImage | SlidingWindow:
        """How the network covers an image."""
        if self.window_stride is None:
            return WholeImage(self.size, multiple=16)
        return SlidingWindow(self.size, self.window_stride)

    @property
    def views(self) -> tuple[View, ...]:
        """The scales and flips to average over."""
        return scales_and_flips(self.scales, flip=self.flip)


@dataclass(frozen=True, kw_only=True)
class DeepLabExperimentConfig(BackboneExperimentConfig):
    """Settings common to the DeepLab experiments."""

    augment: DeepLabAugmentConfig = DeepLabAugmentConfig()
    loss: SemanticLoss = SemanticLoss()
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig()


def training_transforms(augment: DeepLabAugmentConfig, normalize: Normalize) -> tuple:
    """Returns the transforms that turn an example into a normalised crop and its labels."""
    steps = [PhotometricDistortion()] if augment.photometric else []
    crop = Warp(
        augment.crop,
        scale=augment.scale,
        scale_step=augment.scale_step,
        flip_horizontal=augment.flip,
        border="constant",
        fill=normalize.mean,
        cat_max_ratio=augment.max_class_share,
        class_balanced=augment.class_balanced,
    )
    return (*steps, crop, normalize)


def deeplab_task(
    config: DeepLabExperimentConfig,
    classes: tuple[str, ...],
    channels: int,
    *,
    background: str = BACKGROUND,
) -> SemanticTask:
    """Builds the task.

    Args:
      classes: the names of the classes.
      channels: number of channels of the images.
      background: the name of the background; see `Splits`.
    """
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
        pixel_range=config.network.pixel_range,
        refine=partial(refine_probabilities, config=prediction.crf) if prediction.refine else None,
        background=background,
    )


def deeplab_experiment(config: DeepLabExperimentConfig, splits: Splits) -> Experiment:
    """Builds the experiment on the splits of any data set."""
    task = deeplab_task(config, splits.classes, splits.channels, background=splits.background)
    return Experiment(
        task=task,
        train=splits.train,
        transforms=training_transforms(config.augment, config.network.normalize),
        evaluation=splits.evaluation,
        best_metric="mean_iou",
        orientation=splits.orientation,
        initialize=partial(config.initial.initialize, network=config.network),
    )


@dataclass(frozen=True, kw_only=True)
class VocConfig(DeepLabExperimentConfig):
    """Settings common to the experiments on VOC 2012."""

    training_set: Literal["train", "train_aug", "trainval", "coco"] = "train_aug"
    """train: VOC's 1,464 images. train_aug: the 10,582 with SBD's annotations. trainval: all images
    with published labels, for the test server; val is then not held out. coco: COCO's images with
    VOC's classes, for pre-training."""


def voc_experiment(config: VocConfig) -> Experiment:
    """Builds the experiment, scored on "val" of VOC, or of COCO in pre-training."""
    name, train = "voc2012", config.training_set
    if train == "coco":
        name, train = "coco_voc", "train"
    return deeplab_experiment(config, prepared_splits(name, data_dir=config.data_dir, train=train))


@dataclass(frozen=True, kw_only=True)
class CityscapesConfig(DeepLabExperimentConfig):
    """Settings common to the experiments on Cityscapes: the protocol of v3 and v3+."""

    train: TrainConfig = TrainConfig(
        num_steps=90_000, batch_size=16, eval_every=10_000, eval_batch_size=1, checkpoint_every=1000
    )
    augment: DeepLabAugmentConfig = DeepLabAugmentConfig(crop=(769, 769))
    prediction: DeepLabPredictionConfig = DeepLabPredictionConfig(size=(1025, 2049))


def cityscapes_experiment(config: CityscapesConfig) -> Experiment:
    """Builds the experiment, trained on the finely annotated "train" and scored on "val"."""
    return deeplab_experiment(config, prepared_splits("cityscapes", data_dir=config.data_dir))


# detectron2's protocol on Cityscapes as fields of a variant: warm-up, then poly; no weight decay of
# norms; 512 × 1024 crops of images whose shorter side is drawn from 512 to 2048.
DETECTRON2 = {
    "optimizer": OptimizerConfig(
        learning_rate=0.01,
        reference_batch_size=16,
        weight_decay=1e-4,
        decayed=r"(kernel|convolution/bias|logits/bias)$",
        warmup_steps=1000,
    ),
    "augment": DeepLabAugmentConfig(crop=(512, 1024), scale=(0.5, 2.0), scale_step=0.25),
    "loss": SemanticLoss(hard_pixels=0.2),
}


def mmsegmentation(
    *, crop: tuple[int, int] = (512, 1024), window_stride: tuple[int, int] | None = None
) -> dict:
    """Returns mmsegmentation's protocol on Cityscapes as fields of a variant: 80,000 steps.

    Args:
      crop: height and width of the training crops.
      window_stride: evaluates by sliding windows of the size of the crops; None takes whole images.
    """
    fields: dict[str, Any] = {
        "train": TrainConfig(
            num_steps=80_000,
            batch_size=8,
            eval_every=8000,
            eval_batch_size=1,
            checkpoint_every=1000,
        ),
        "optimizer": OptimizerConfig(
            learning_rate=0.01,
            reference_batch_size=8,
            weight_decay=5e-4,
            decayed=".",
            end_learning_rate=1e-4,
        ),
        "augment": DeepLabAugmentConfig(
            crop=crop, scale_step=None, photometric=True, max_class_share=0.75
        ),
    }
    if window_stride is not None:
        fields["prediction"] = DeepLabPredictionConfig(size=crop, window_stride=window_stride)
    return fields
