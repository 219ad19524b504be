"""The task of a converted Mask R-CNN: how its source resizes, pads and pastes."""

from collections.abc import Callable
from functools import partial

from segjax.data.augmentation.instance import ResizeShortSide
from segjax.data.augmentation.semantic import Normalize
from segjax.evaluation.instance_evaluator import CocoEvaluator
from segjax.inference.paste import PasteRule
from segjax.models.mask_rcnn import MaskRCNN
from segjax.tasks.instance import InstanceTask, InstanceView

COCO_SIZE = ResizeShortSide((800,), 1333)
# Of such images, either way: two compilations for all photographs.
COCO_BUCKETS = ((832, 1344), (1344, 832))


def coco_task(
    model: MaskRCNN,
    *,
    classes: tuple[str, ...],
    preprocess: Normalize,
    paste_rule: PasteRule,
    category_ids: tuple[int, ...] | None = None,
    resize: Callable[[dict, None], dict] = COCO_SIZE,
    buckets: tuple[tuple[int, int], ...] = COCO_BUCKETS,
) -> InstanceTask:
    """Returns the task for photographs with a shorter side of 800 and a longer of at most 1333.

    Args:
      classes: background first.
      paste_rule: how masks become pixels; see `segjax.inference.paste`.
      category_ids: the training data's ids of the classes, without the background.
      resize, buckets: to another size, or in another way.
    """
    return InstanceTask(
        model=model,
        classes=classes,
        channels=3,
        buckets=buckets,
        preprocess=preprocess,
        views=(InstanceView(resize),),
        make_evaluator=partial(CocoEvaluator, classes, category_ids=category_ids),
        paste_rule=paste_rule,
        category_ids=category_ids,
    )


def object_names(
    num_classes: int, classes: tuple[str, ...] | None, known: dict[int, tuple[str, ...]]
) -> tuple[str, ...]:
    """The names given, known ones for their number, or else numbers; background first.

    Args:
      num_classes: without the background.
      classes: names with the background, or None.
      known: names with the background, by their number without it.

    Raises:
      ValueError: there are more or fewer names than classes.
    """
    if classes is None:
        numbers = (f"class {index}" for index in range(1, num_classes + 1))
        return known.get(num_classes, ("background", *numbers))
    if len(classes) != num_classes + 1:
        raise ValueError(
            f"the weights have {num_classes} classes and the background; got {len(classes)} "
            f"names, of which the first is the background's: {classes}"
        )
    return tuple(classes)
