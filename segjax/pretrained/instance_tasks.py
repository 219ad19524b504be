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
# Shapes for landscape and portrait images of that size: two compilations for all photographs.
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
    """Returns a task that predicts photographs at COCO's usual size.

    Args:
      model: the network.
      classes: the names of the classes, background first.
      preprocess: the normalisation of pixels.
      paste_rule: how masks become pixels; see `segjax.inference.paste`.
      category_ids: the training data's ids of the classes, without the background.
      resize: the resizing of photographs; by default to a shorter side of 800 pixels and a longer
        one of at most 1333.
      buckets: height and width of each shape to which resized photographs are padded.
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
    """Returns the given names; without any, known names for this number of classes or numbers.

    Args:
      num_classes: number of classes without the background.
      classes: names of the classes, the background first; or None.
      known: names, the background first, by the number of classes without it.

    Raises:
      ValueError: the number of names is not the number of classes.
    """
    if classes is None:
        numbers = (f"class {index}" for index in range(1, num_classes + 1))
        return known.get(num_classes, ("background", *numbers))
    if len(classes) != num_classes + 1:
        raise ValueError(
            f"the weights have {num_classes} classes and the background; got {len(classes)} names, "
            f"the first for the background: {classes}"
        )
    return tuple(classes)
