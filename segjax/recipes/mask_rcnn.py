"""Mask R-CNN's protocols: images in buckets, augmentation, sampling, losses, COCO's scores.

He et al., ICCV 2017 (arXiv:1703.06870), as detectron2 and torchvision train it. Fields here hold
what differs between data sets; `experiments/mask_rcnn/` sets them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segjax.data.augmentation.instance import (
    Enlarge,
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
)
from segjax.data.loading.aspect_ratio import orientation_groups
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.sources.coco_files import CocoInstances
from segjax.data.sources.splits import Splits, as_objects, prepared_splits
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.evaluation.nuclei import example_mean_precision
from segjax.losses.instance import DetectionLoss
from segjax.models.regions import AnchorSampling, RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.pretrained.instance_tasks import COCO_BUCKETS
from segjax.recipes.initial import InitialConfig
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.tasks.instance import InstanceTask, InstanceView
from segjax.training.configuration import ExperimentConfig
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

# For OptimizerConfig.multipliers: freezes the stem, the first stage and the backbone's norms.
FROZEN = (("^backbone/(stem|stage1_)", 0.0), ("^backbone/.*/norm/", 0.0))


@dataclass(frozen=True)
class ShortSides:
    """Images whose shorter side has one of these lengths: the papers' and detectron2's."""

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_size: int = 1333
    """The longer side has no more."""

    @property
    def transform(self):
        return ResizeShortSide(self.short_sides, self.max_size)


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter: windows of one size from images of very different sizes (Ghiasi et al.,
    2021, arXiv:2012.07177)."""

    size: tuple[int, int] = (1024, 1024)
    scale: tuple[float, float] = (0.1, 2.0)

    @property
    def transform(self):
        return LargeScaleJitter(self.size, scale=self.scale)


@dataclass(frozen=True)
class Crop:
    """Windows of one size from images about as large."""

    size: tuple[int, int] = (256, 256)
    scale: tuple[float, float] = (0.8, 1.25)
    min_area: int = 16
    """In pixels; less of an object does not count as one."""

    @property
    def transform(self):
        return RandomCrop(self.size, scale=self.scale, min_area=self.min_area)


@dataclass(frozen=True)
class InputConfig:
    """What training reads."""

    resize: ShortSides | Jitter | Crop = ShortSides()
    flip_horizontal: bool = True
    flip_vertical: bool = False
    buckets: tuple[tuple[int, int], ...] = COCO_BUCKETS
    """Height and width of the few shapes to which images are padded; each is compiled for."""
    max_objects: int = 100
    """Of an image; "dropped_objects" in the log counts those beyond it."""
    keep_empty: bool = False
    """Train on images without objects, too."""
    mask_size: int = 112
    """Cells a side of a mask in the frame of its box."""


@dataclass(frozen=True)
class MaskRCNNPredictionConfig:
    """How whole images are predicted; may differ between evaluations of one run."""

    short_sides: tuple[int, ...] = (800,)
    """Of the views that are merged; detectron2's test-time augmentation: 400 to 1200 by 100."""
    max_size: int = 1333
    scales: tuple[float, ...] = ()
    """Of the views relative to the image's own size, instead of short_sides."""
    flip: bool = False
    """Look at the mirror image as well."""
    buckets: tuple[tuple[int, int], ...] = COCO_BUCKETS
    """What fits none is padded to a multiple of 32."""
    mask_threshold: float = 0.5
    max_detections: tuple[int, int, int] = (1, 10, 100)
    """Of an image, for average recall and, the last, for average precision."""

    @property
    def views(self) -> tuple[InstanceView, ...]:
        resizes = [Enlarge(scale) for scale in self.scales] or [
            ResizeShortSide((side,), self.max_size) for side in self.short_sides
        ]
        flips = (False, True) if self.flip else (False,)
        return tuple(InstanceView(resize, flip) for resize in resizes for flip in flips)


@dataclass(frozen=True)
class CocoFiles:
    """A data set of one's own in COCO's format; all four paths go together."""

    train_annotations: Path | None = None
    """JSON file."""
    train_images: Path | None = None
    """Folder."""
    val_annotations: Path | None = None
    val_images: Path | None = None

    def __post_init__(self):
        paths = vars(self)
        missing = [name for name, path in paths.items() if path is None]
        if missing and len(missing) < len(paths):
            raise ValueError(f"files: the four paths go together; {', '.join(missing)} is missing")


@dataclass(frozen=True, kw_only=True)
class MaskRCNNExperimentConfig(ExperimentConfig):
    """What the experiments with Mask R-CNN have in common."""

    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=0.02,
        reference_batch_size=16,
        weight_decay=1e-4,
        decayed=r"(kernel|bias)$",
        multipliers=FROZEN,
        schedule="step",
        warmup_steps=1000,
    )
    network: MaskRCNNConfig = MaskRCNNConfig()
    initial: InitialConfig = InitialConfig()
    input: InputConfig = InputConfig()
    loss: DetectionLoss = DetectionLoss()
    proposals: ProposalConfig = ProposalConfig(pre_nms=2000)
    """In training."""
    anchor_sampling: AnchorSampling = AnchorSampling()
    region_sampling: RegionSampling = RegionSampling()
    prediction: MaskRCNNPredictionConfig = MaskRCNNPredictionConfig()


def instance_task(
    config: MaskRCNNExperimentConfig,
    classes: tuple[str, ...],
    *,
    category_ids: tuple[int | str, ...] | None = None,
    nuclei_score: bool = False,
) -> InstanceTask:
    """Builds the task for these classes, the background first.

    Args:
      category_ids: COCO's ids of the classes.
      nuclei_score: also score the mean precision of the 2018 Data Science Bowl.
    """
    extra = {"mean_precision": example_mean_precision} if nuclei_score else None
    prediction = config.prediction
    return InstanceTask(
        model=config.network.model(len(classes) - 1),
        classes=classes,
        channels=3,
        buckets=prediction.buckets,
        preprocess=config.network.normalize,
        views=prediction.views,
        make_evaluator=partial(
            CocoEvaluator,
            classes,
            category_ids=category_ids,
            extra=extra,
            max_detections=prediction.max_detections,
        ),
        loss_function=config.loss,
        proposals=config.proposals,
        anchor_sampling=config.anchor_sampling,
        region_sampling=config.region_sampling,
        mask_threshold=prediction.mask_threshold,
        category_ids=category_ids,
    )


def mask_rcnn_experiment(
    config: MaskRCNNExperimentConfig, splits: Splits, *, nuclei_score: bool = False
) -> Experiment:
    """Builds the experiment on splits whose examples have objects; see `as_objects`."""
    task = instance_task(
        config, splits.classes, category_ids=splits.category_ids, nuclei_score=nuclei_score
    )
    settings, normalize = config.input, config.network.normalize
    most = task.model.detections.max_detections

    def noted(opener):
        return partial(_open_with_notes, opener, most=most)

    return Experiment(
        task=task,
        train=partial(
            _open_with_notes, splits.train, most=settings.max_objects, classes=splits.classes
        ),
        transforms=(
            settings.resize.transform,
            RandomFlip(horizontal=settings.flip_horizontal, vertical=settings.flip_vertical),
            PackObjects(
                settings.buckets,
                max_objects=settings.max_objects,
                normalize=normalize,
                mask_size=settings.mask_size,
            ),
        ),
        evaluation={name: noted(opener) for name, opener in splits.evaluation.items()},
        groups=_groups if len(settings.buckets) > 1 else None,
        best_metric="mask_AP",
        initialize=partial(
            config.initial.initialize,
            normalize=normalize,
            backbone=task.model.backbone,
            moved={"backbone/stage4_": "box_head/"} if config.network.neck == "c4" else {},
        ),
    )


def coco_experiment(config: MaskRCNNExperimentConfig) -> Experiment:
    """Builds the experiment on COCO 2017, scored on val2017 with COCO's own class ids."""
    return mask_rcnn_experiment(
        config,
        as_objects(
            prepared_splits("coco", data_dir=config.data_dir), keep_empty=config.input.keep_empty
        ),
    )


def coco_files_splits(
    files: CocoFiles,
    classes: tuple[str, ...],
    *,
    category_ids: tuple[int | str, ...] | None = None,
    keep_empty: bool = False,
) -> Splits:
    """Returns splits of one's own JSON files.

    Args:
      files: the paths.
      classes: names of the classes without background; the files' categories are matched by name.
      category_ids: the training file's ids of the classes; None numbers them from 1.
      keep_empty: train on images without objects, too.

    Raises:
      ValueError: when a split is opened, if its file has objects of other categories.
    """
    return Splits(
        classes=("background", *classes),
        channels=3,
        train=partial(
            CocoInstances,
            files.train_annotations,
            files.train_images,
            classes=classes,
            drop_empty=not keep_empty,
        ),
        evaluation={
            "val": partial(
                CocoInstances,
                files.val_annotations,
                files.val_images,
                classes=classes,
                for_scores=True,
            )
        },
        category_ids=category_ids,
    )


def _open_with_notes(opener, *, most: int, classes: tuple[str, ...] = ()):
    """Opens a split and prints what is unusual about it.

    Args:
      opener: opens the split.
      most: how many objects of an image training keeps, or prediction finds.
      classes: for training, the names of the classes, background first.
    """
    source = opener()
    data = getattr(source, "source", source)  # of an `ObjectSource`
    name = getattr(data, "annotations", None) or getattr(data, "name", type(data).__name__)
    notes = [*getattr(source, "notes", ())]
    counts = getattr(source, "class_counts", None)
    if classes and counts is not None:
        unused = [name for name, count in zip(classes[1:], counts, strict=True) if not count]
        if unused:
            shown = ", ".join(unused[:5]) + (f" and {len(unused) - 5} more" if unused[5:] else "")
            notes.append(f"no object is annotated as: {shown}")
    counts = getattr(source, "object_counts", None)
    if counts is not None and len(counts) and max(counts) > most:
        consequence = (
            "training keeps the largest (input.max_objects)"
            if classes
            else "prediction finds no more (network.detections.max_detections)"
        )
        crowded = int(np.count_nonzero(np.asarray(counts) > most))
        notes.append(
            f"{crowded} of {len(counts)} images hold more than {most} objects, at most "
            f"{max(counts)}: {consequence}"
        )
    for note in notes:
        print(f"{name}: {note}")
    return source


def _groups(source) -> np.ndarray:
    """Separates landscape from portrait, so that a batch needs one bucket."""
    if source.sizes is None:
        raise ValueError(
            "the data set was prepared before it kept the sizes of its images: "
            "segjax data prepare NAME --overwrite"
        )
    return orientation_groups(source.sizes)
