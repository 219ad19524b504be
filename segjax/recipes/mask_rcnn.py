"""Mask R-CNN's protocols: image buckets, augmentation, sampling, losses, COCO scores.

He et al., ICCV 2017 (arXiv:1703.06870), as detectron2 and torchvision train it. The fields here
differ between data sets; `experiments/mask_rcnn/` sets them.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segjax.data.augmentation.instance import (
    Enlarge,
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
)
from segjax.data.loading.pack_objects import PackObjects
from segjax.data.orientation import Orientation
from segjax.data.sources.coco_files import CocoInstances
from segjax.data.sources.empty_images import check_share
from segjax.data.sources.splits import Splits, as_objects, prepared_splits
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.evaluation.nuclei import example_mean_precision, example_panoptic_quality
from segjax.inference.instance_tiles import tiles_of
from segjax.losses.instance import DetectionLoss
from segjax.models.regions import AnchorSampling, RegionSampling
from segjax.models.rpn import ProposalConfig
from segjax.pretrained.instance_tasks import COCO_BUCKETS
from segjax.recipes.buckets import bucket_groups, check_buckets
from segjax.recipes.initial import BackboneExperimentConfig
from segjax.recipes.mask_rcnn_networks import MaskRCNNConfig
from segjax.recipes.notes import open_with_notes
from segjax.tasks.instance import InstanceTask, InstanceView
from segjax.training.experiment import Experiment
from segjax.training.optimizer import OptimizerConfig

# Learning-rate multipliers that freeze the stem, the first stage and the backbone's norms.
FROZEN = (("^backbone/(stem|stage1_)", 0.0), ("^backbone/.*/norm/", 0.0))


@dataclass(frozen=True)
class ShortSides:
    """Resizes the shorter side to a random one of these lengths, as the paper and detectron2 do."""

    short_sides: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Lengths in pixels to choose from."""
    max_size: int = 1333
    """Largest length of the longer side; the image is reduced further to keep it."""

    @property
    def transform(self):
        """The transform of an example."""
        return ResizeShortSide(self.short_sides, self.max_size)


@dataclass(frozen=True)
class Jitter:
    """Large-scale jitter (Ghiasi et al., 2021, arXiv:2012.07177): a random size, then a window."""

    size: tuple[int, int] = (1024, 1024)
    """Height and width of the window."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest factor, relative to the size at which the image fits the window."""

    @property
    def transform(self):
        """The transform of an example."""
        return LargeScaleJitter(self.size, scale=self.scale)


@dataclass(frozen=True)
class Crop:
    """Cuts a window from an image of about its size, resized by a random factor."""

    size: tuple[int, int] = (256, 256)
    """Height and width of the window."""
    scale: tuple[float, float] = (0.8, 1.25)
    """Smallest and largest factor of the image's size."""
    min_area: int = 16
    """Smallest visible part of an object in pixels; objects with less are dropped."""

    @property
    def transform(self):
        """The transform of an example."""
        return RandomCrop(self.size, scale=self.scale, min_area=self.min_area)


@dataclass(frozen=True)
class InputConfig:
    """Training images and their augmentation."""

    resize: ShortSides | Jitter | Crop = ShortSides()
    """Resizing or cropping of the images."""
    flip_horizontal: bool = True
    """Mirror half of the images left to right."""
    flip_vertical: bool = False
    """Mirror half of the images top to bottom."""
    buckets: tuple[tuple[int, int], ...] = COCO_BUCKETS
    """Height and width of each shape that images are padded to; each costs one compilation."""
    max_objects: int = 100
    """Most objects that are kept for an image; "dropped_objects" in the log counts the others."""
    empty_share: float = 0.0
    """Largest share of images without objects among the training images: 0 leaves them out, 1 keeps
    all. They are drawn once, by the run's seed, and are the same in every epoch."""
    mask_size: int = 112
    """Cells on a side of an object's stored mask, which covers its box."""

    def __post_init__(self):
        check_share(self.empty_share)


@dataclass(frozen=True)
class MaskRCNNPredictionConfig:
    """Prediction of whole images. `segjax evaluate` and `predict` can change it by `--set`."""

    short_sides: tuple[int, ...] = (800,)
    """Length of the image's shorter side in each view; the detections of all views are merged.
    detectron2's test-time augmentation: 400 to 1200 in steps of 100."""
    max_size: int = 1333
    """Largest length of the longer side."""
    scales: tuple[float, ...] = ()
    """Factors of the image's own size, one for each view, instead of short_sides."""
    flip: bool = False
    """Also predict the mirror image of each view."""
    tile: int | None = None
    """Side in pixels of the windows in which a larger image is predicted; each is resized like an
    image of its own, and objects across windows are joined. About the side of the training images,
    so that objects have the sizes that the network knows. None predicts images as a whole."""
    tile_overlap: float = 0.25
    """Share of a window that the next one sees again, up to 0.5."""
    buckets: tuple[tuple[int, int], ...] = COCO_BUCKETS
    """Height and width of each shape to which images are padded; larger images are padded to
    multiples of 32."""
    mask_threshold: float = 0.5
    """Smallest probability of a pixel in a mask."""
    max_detections: tuple[int, int, int] = (1, 10, 100)
    """Numbers of detections per image at which average recall is scored; average precision uses the
    last."""

    def __post_init__(self):
        tiles_of(self.tile, self.tile_overlap)  # refuses bad values

    @property
    def views(self) -> tuple[InstanceView, ...]:
        """The sizes and flips whose detections are merged."""
        resizes = [Enlarge(scale) for scale in self.scales] or [
            ResizeShortSide((side,), self.max_size) for side in self.short_sides
        ]
        flips = (False, True) if self.flip else (False,)
        return tuple(InstanceView(resize, flip) for resize in resizes for flip in flips)


@dataclass(frozen=True)
class CocoFiles:
    """The user's data set in COCO's format; all four paths are required."""

    train_annotations: Path | None = None
    """JSON file of the training annotations."""
    train_images: Path | None = None
    """Folder of the training images."""
    val_annotations: Path | None = None
    """JSON file of the validation annotations."""
    val_images: Path | None = None
    """Folder of the validation images."""
    orientation: Orientation = "upright"
    """How images with an EXIF orientation are read. upright: turned, as viewers show them;
    annotations belong to the upright image. stored: as they are stored, for annotations that were
    drawn on that bitmap."""

    def __post_init__(self):
        paths = {name: path for name, path in vars(self).items() if name != "orientation"}
        missing = [name for name, path in paths.items() if path is None]
        if missing and len(missing) < len(paths):
            raise ValueError(f"files: the four paths go together; {', '.join(missing)} is missing")


@dataclass(frozen=True, kw_only=True)
class MaskRCNNExperimentConfig(BackboneExperimentConfig):
    """Settings common to the Mask R-CNN experiments."""

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
    input: InputConfig = InputConfig()
    loss: DetectionLoss = DetectionLoss()
    proposals: ProposalConfig = ProposalConfig(pre_nms=2000)
    """Proposals in training; network.proposals holds those of prediction."""
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
    """Builds the task.

    Args:
      classes: the names of the classes, the background first.
      category_ids: COCO's ids of the classes without the background; None numbers them from 1.
      nuclei_score: also score the mean precision of the 2018 Data Science Bowl, and the panoptic
        quality of all objects as one class.
    """
    extra = {"mean_precision": example_mean_precision, "panoptic_quality": example_panoptic_quality}
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
            extra=extra if nuclei_score else None,
            max_detections=prediction.max_detections,
        ),
        loss_function=config.loss,
        proposals=config.proposals,
        anchor_sampling=config.anchor_sampling,
        region_sampling=config.region_sampling,
        mask_threshold=prediction.mask_threshold,
        category_ids=category_ids,
        pixel_range=config.network.pixel_range,
        tiles=tiles_of(prediction.tile, prediction.tile_overlap),
    )


def mask_rcnn_experiment(
    config: MaskRCNNExperimentConfig, splits: Splits, *, nuclei_score: bool = False
) -> Experiment:
    """Builds the experiment on splits whose examples hold objects; see `as_objects`."""
    task = instance_task(
        config, splits.classes, category_ids=splits.category_ids, nuclei_score=nuclei_score
    )
    settings, normalize = config.input, config.network.normalize
    most = task.model.detections.max_detections

    def noted(opener):
        return partial(open_with_notes, opener, most=most)

    def open_training():
        source = open_with_notes(splits.train, most=settings.max_objects, classes=splits.classes)
        if (sizes := getattr(source, "sizes", None)) is not None:
            check_buckets(settings.resize.transform, settings.buckets, sizes)
        return source

    return Experiment(
        task=task,
        train=open_training,
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
        groups=bucket_groups if len(settings.buckets) > 1 else None,
        best_metric="mask_AP",
        orientation=splits.orientation,
        initialize=partial(
            config.initial.initialize,
            network=config.network,
            moved={"backbone/stage4_": "box_head/"} if config.network.neck == "c4" else {},
        ),
    )


def coco_experiment(config: MaskRCNNExperimentConfig) -> Experiment:
    """Builds the experiment on COCO 2017, scored on val2017 with COCO's category ids."""
    return mask_rcnn_experiment(
        config,
        as_objects(
            prepared_splits("coco", data_dir=config.data_dir),
            empty_share=config.input.empty_share,
            seed=config.seed,
        ),
    )


def coco_files_splits(
    files: CocoFiles,
    classes: tuple[str, ...],
    *,
    category_ids: tuple[int | str, ...] | None = None,
    leave_out_others: bool = False,
    empty_share: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Returns splits of the user's JSON files.

    Args:
      files: the paths, and how images are read.
      classes: names of the classes without the background; the files' categories are matched by
        name.
      category_ids: the training file's ids of the classes; None numbers them from 1.
      leave_out_others: leave out objects of other categories, in training and in scores.
      empty_share: the largest share of images without objects in training; see `choose_images`.
      seed: decides which images without objects are trained on.

    Raises:
      ValueError: when a split is opened, if its file has objects of other categories and they are
        not left out.
    """

    def open_files(annotations, images, **options):
        return CocoInstances(
            annotations,
            images,
            classes=classes,
            leave_out_others=leave_out_others,
            orientation=files.orientation,
            **options,
        )

    return Splits(
        classes=("background", *classes),
        channels=3,
        train=partial(
            open_files,
            files.train_annotations,
            files.train_images,
            empty_share=empty_share,
            seed=seed,
        ),
        evaluation={
            "val": partial(open_files, files.val_annotations, files.val_images, for_scores=True)
        },
        category_ids=category_ids,
        orientation=files.orientation,
    )
