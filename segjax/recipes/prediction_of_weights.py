"""Settings of prediction for weights trained elsewhere, by the names that runs have."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from segjax.data.augmentation.instance import ResizeShortSide
from segjax.inference.coverings import SlidingWindow, WholeImage
from segjax.inference.instance_tiles import tiles_of
from segjax.inference.views import scales_and_flips
from segjax.models.detections import DetectionConfig
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.pretrained.converted import Pretrained
from segjax.tasks.instance import InstanceTask, InstanceView
from segjax.tasks.semantic import SemanticTask
from segjax.training import configuration


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
    """Returns the settings of a converted model as JSON values."""
    task = model.segmenter
    if isinstance(task, SemanticTask):
        return configuration.to_dict(SemanticSettings())
    rule = _rule(task.views[0].resize)
    prediction = DetectorPrediction(
        rule.short_sides, rule.max_size, mask_threshold=task.mask_threshold
    )
    network = DetectorNetwork(task.model.detections)
    return configuration.to_dict(DetectorSettings(prediction, network))


def with_prediction(model: Pretrained, changes: Mapping[str, Any]) -> Pretrained:
    """Returns a converted model that predicts with other settings.

    Args:
      model: a converted model with a task.
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
        return dataclasses.replace(model, task=_semantic(task, settings.prediction))
    settings = configuration.from_dict(DetectorSettings, values, where="settings")
    task = _detector(task, settings)
    return dataclasses.replace(model, model=task.model, task=task)


def _semantic(task: SemanticTask, prediction: SemanticPrediction) -> SemanticTask:
    refine = partial(refine_probabilities, config=prediction.crf) if prediction.refine else None
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


def _detector(task: InstanceTask, settings: DetectorSettings) -> InstanceTask:
    """Changes the sizes by the rule of the source, such as torchvision's rounding."""
    prediction = settings.prediction
    resize: Any = task.views[0].resize
    views = []
    for side in prediction.short_sides:
        rule = dataclasses.replace(_rule(resize), short_sides=(side,), max_size=prediction.max_size)
        sized = rule if resize is _rule(resize) else dataclasses.replace(resize, rule=rule)
        flips = (False, True) if prediction.flip else (False,)
        views += [InstanceView(sized, flip) for flip in flips]
    return dataclasses.replace(
        task,
        model=task.model.clone(detections=settings.network.detections),
        views=tuple(views),
        mask_threshold=prediction.mask_threshold,
        tiles=tiles_of(prediction.tile, prediction.tile_overlap),
    )


def _rule(resize) -> ResizeShortSide:
    """The rule of a resizing: itself, or that of torchvision's `Resize`."""
    return getattr(resize, "rule", resize)
