"""Settings of prediction for models without a run, by the names that runs have.

These are converted weights and published folders.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from segjax.data.augmentation.instance import Enlarge, ResizeShortSide
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.instance_tiles import tiles_of
from segjax.inference.views import scales_and_flips
from segjax.models.detections import DetectionConfig
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.pretrained.converted import Pretrained
from segjax.tasks.instance import InstanceTask, InstanceView
from segjax.tasks.semantic import SemanticTask
from segjax.training import configuration

Model = TypeVar("Model", bound=Pretrained)
# The settings that decide a detector's views.
VIEWS = {f"prediction.{name}" for name in ("short_sides", "max_size", "flip")}


@dataclass(frozen=True)
class SemanticPrediction:
    """Settings of a semantic model; see `DeepLabPredictionConfig`.

    With `size` and `window_stride`, windows of this size slide over the image in its own size: it
    is not resized as its source does.
    """

    size: tuple[int, int] | None = None
    window_stride: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    refine: bool = False
    crf: CrfConfig = CrfConfig()

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={[*self.scales]}; expected one or more above 0")
        if (self.size is None) != (self.window_stride is None):
            raise ValueError("size and window_stride go together, such as [512,512] and [384,384]")


@dataclass(frozen=True)
class SemanticSettings:
    """All settings of a semantic model."""

    prediction: SemanticPrediction = SemanticPrediction()


@dataclass(frozen=True)
class DetectorPrediction:
    """Settings of a detector; see `MaskRCNNPredictionConfig`."""

    short_sides: tuple[int, ...] = (800,)
    max_size: int = 1333
    flip: bool = False
    mask_threshold: float = 0.5
    tile: int | None = None
    tile_overlap: float = 0.25

    def __post_init__(self):
        if not self.short_sides:
            raise ValueError("short_sides=[]; expected one or more lengths in pixels")
        tiles_of(self.tile, self.tile_overlap)  # refuses bad values


@dataclass(frozen=True)
class DetectorNetwork:
    """The choice of detections."""

    detections: DetectionConfig = DetectionConfig()


@dataclass(frozen=True)
class DetectorSettings:
    """All settings of a detector."""

    prediction: DetectorPrediction = field(default=DetectorPrediction())
    network: DetectorNetwork = field(default=DetectorNetwork())


def settings_of(model: Pretrained) -> dict[str, Any]:
    """Returns the settings of a model as JSON values."""
    task = model.segmenter
    if isinstance(task, SemanticTask):
        scales = tuple(dict.fromkeys(view.scale for view in task.views))
        flip = task.views == scales_and_flips(scales, flip=True)
        refine = task.refine is not None
        crf = task.refine.keywords["config"] if isinstance(task.refine, partial) else CrfConfig()
        return configuration.to_dict(
            SemanticSettings(SemanticPrediction(scales=scales, flip=flip, refine=refine, crf=crf))
        )
    rules = [_rule(view.resize) for view in task.views]
    sides = tuple(dict.fromkeys(rule.short_sides[0] for rule in rules))
    tiles = {}
    if task.tiles is not None:
        tiles = {"tile": task.tiles.side, "tile_overlap": task.tiles.overlap}
    prediction = DetectorPrediction(
        sides,
        rules[0].max_size,
        flip=any(view.flip for view in task.views),
        mask_threshold=task.mask_threshold,
        **tiles,
    )
    network = DetectorNetwork(task.model.detections)
    return configuration.to_dict(DetectorSettings(prediction, network))


def with_prediction(model: Model, changes: Mapping[str, Any]) -> Model:
    """Returns a model that predicts with other settings. Views that no setting names stay.

    Args:
      model: a model with a task.
      changes: JSON values by dotted name, such as {"prediction.flip": True}.

    Raises:
      configuration.UnknownSetting: the model has no such setting.
      ValueError: a value is bad.
    """
    values, task = settings_of(model), model.segmenter
    for name, value in changes.items():
        values = configuration.with_value(values, name, value)
    if isinstance(task, SemanticTask):
        settings = configuration.from_dict(SemanticSettings, values, where="settings")
        return dataclasses.replace(model, task=_semantic(task, settings.prediction, changes))
    settings = configuration.from_dict(DetectorSettings, values, where="settings")
    task = _detector(task, settings, changes)
    return dataclasses.replace(model, model=task.model, task=task)


def _semantic(
    task: SemanticTask, prediction: SemanticPrediction, changes: Mapping[str, Any]
) -> SemanticTask:
    refine = partial(refine_probabilities, config=prediction.crf) if prediction.refine else None
    views = task.views  # a U-Net's may be turned
    if {"prediction.scales", "prediction.flip"} & changes.keys():
        views = scales_and_flips(prediction.scales, flip=prediction.flip)
    task = dataclasses.replace(task, views=views, refine=refine)
    if prediction.size is None or prediction.window_stride is None:
        return task
    if isinstance(task.covering, WholeImage):
        multiple, known = task.covering.multiple, task.covering.size
        rests = [length % multiple for length in known]
        if [length % multiple for length in prediction.size] != rests:
            raise ValueError(
                f"size={[*prediction.size]}; the network takes heights and widths of a multiple of "
                f"{multiple}" + (f" plus {rests[0]}" if rests[0] else "")
            )
    covering = SlidingWindow(prediction.size, prediction.window_stride)
    return dataclasses.replace(task, covering=covering, input_size=None)


def _detector(
    task: InstanceTask, settings: DetectorSettings, changes: Mapping[str, Any]
) -> InstanceTask:
    """Changes the sizes by the rule of the source, such as torchvision's rounding."""
    prediction = settings.prediction
    resize: Any = task.views[0].resize
    if isinstance(resize, Enlarge):
        resize = ResizeShortSide(prediction.short_sides[:1], prediction.max_size)
    views = []
    for side in prediction.short_sides:
        rule = dataclasses.replace(_rule(resize), short_sides=(side,), max_size=prediction.max_size)
        sized = rule if resize is _rule(resize) else dataclasses.replace(resize, rule=rule)
        flips = (False, True) if prediction.flip else (False,)
        views += [InstanceView(sized, flip) for flip in flips]
    return dataclasses.replace(
        task,
        model=task.model.clone(detections=settings.network.detections),
        views=tuple(views) if VIEWS & changes.keys() else task.views,
        mask_threshold=prediction.mask_threshold,
        tiles=tiles_of(prediction.tile, prediction.tile_overlap),
    )


def _rule(resize) -> ResizeShortSide:
    """The rule of a resizing: itself, or that of torchvision's `Resize`.

    A resizing by a factor of the image's size has none; the usual one stands for it.
    """
    if isinstance(resize, Enlarge):
        default = DetectorPrediction()
        return ResizeShortSide(default.short_sides, default.max_size)
    return getattr(resize, "rule", resize)
