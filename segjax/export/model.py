"""What can be exported of a trained model, as a function of images, with the facts about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segjax.export.instances import check_instances, instance_function, sizes_of
from segjax.export.semantic import check_semantic, resizes, semantic_function
from segjax.pretrained.converted import Pretrained
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask
from segjax.training.precision import MatmulPrecision, with_precision

DTYPES = ("uint8", "uint16", "float32")
SEMANTIC_OUTPUTS = {
    "labels": "uint8 [batch, height, width]: class numbers",
    "probabilities": "float32 [batch, height, width, classes]",
}
INSTANCE_OUTPUTS = {
    "boxes": "float32 [batch, detections, 4]: x_min, y_min, x_max, y_max in pixels of the image",
    "scores": "float32 [batch, detections], descending",
    "classes": "int32 [batch, detections]: class numbers, from 1 on",
    "valid": "bool [batch, detections]: which entries hold a detection; the others are zeros",
    "masks": "bool [batch, detections, height, width]: the pixels of each object",
}


@dataclass(frozen=True)
class ImageFunction:
    """A model as a pure function of a batch of images.

    Attributes:
      call: images [batch, height, width, channels] → a dict of arrays.
      dtype: the type of the images' pixels.
      channels: the number of their channels.
      size: the height and width of the images; None if both are open.
      classes: the name of each class number.
      outputs: a line of text about each entry of the result.
      most: the largest height and width of images of open size; None for any.
      notes: what the function leaves out of `segjax predict`, one sentence each.
    """

    call: Callable
    dtype: str
    channels: int
    size: tuple[int, int] | None
    classes: tuple[str, ...]
    outputs: Mapping[str, str]
    most: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def image_function(
    model: Pretrained,
    *,
    size: tuple[int, int] | None = None,
    dtype: str | None = None,
    precision: MatmulPrecision = "default",
) -> ImageFunction:
    """Returns a trained model as a function of images, with all that `predict` does inside.

    Args:
      model: a run, or converted weights.
      size: height and width of the images; None leaves both open.
      dtype: the type of the images' pixels; None takes that of the run's training images, or else
        the first that the model reads.
      precision: of products in float32, as the run predicts; see `with_precision`.

    Raises:
      ValueError: the model cannot be exported, or not like this; the message says why.
    """
    task = model.segmenter
    dtype = _dtype(model, dtype)
    notes: tuple[str, ...] = ()
    most = None
    if type(task) is SemanticTask:
        check_semantic(task)
        if size is None and resizes(task):
            raise ValueError(
                "this model resizes its images, so the exported function takes images of one size: "
                "give --size HEIGHT WIDTH"
            )
        call, outputs = semantic_function(task, model.variables, dtype=dtype), SEMANTIC_OUTPUTS
        if task.decode is not None:
            notes = (
                f"objects are not separated: the labels are the most probable classes, before "
                f"{task.decode!r}",
            )
    elif type(task) is InstanceTask:
        check_instances(task)
        sizes = sizes_of(task, size, dtype)
        call = instance_function(task, model.variables, dtype=dtype, sizes=sizes)
        outputs, most = INSTANCE_OUTPUTS, sizes.most
        resized = sizes.view != size or (size is None and most is None)
        if resized and (dtype == "float32" or task.channels != 3):
            notes = (
                "resized pixels differ from those of segjax predict in their last digits, integers "
                "by up to 1; scores then differ, and close ones change places",
            )
    else:
        raise ValueError(
            f"a task of your own ({type(task).__name__}) cannot be exported; segjax exports "
            "SemanticTask and InstanceTask"
        )
    call = with_precision(call, precision)
    return ImageFunction(call, dtype, task.channels, size, task.classes, outputs, most, notes)


def _dtype(model: Pretrained, wanted: str | None) -> str:
    """Returns the type of pixels; ValueError if the model does not read the wanted one."""
    maps_others = getattr(model.task, "pixel_range", None) is not None
    reads = DTYPES if maps_others else tuple(name for name in DTYPES if name in model.dtypes)
    if wanted is not None and wanted not in reads:
        raise ValueError(f"--dtype {wanted}: this model reads {', '.join(reads)}")
    if wanted is not None:
        return wanted
    seen = getattr(model, "pixels", {}).get("types", [])
    return seen[0] if len(seen) == 1 and seen[0] in reads else reads[0]
