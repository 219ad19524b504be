"""Finds errors and oddities in images and labels."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from segjax.coco.index import are_flat
from segjax.data.checks.report import SplitReport
from segjax.data.instance_masks import CroppedMask
from segjax.data.sources.files import describe_values
from segjax.data.sources.protocol import OBJECTS, OPTIONAL_OBJECTS, VALUE_OUTSIDE
from segjax.labels import IGNORE_LABEL

# Kinds of NumPy's types, their name and the dimensions of entries with a row for each object.
_OF_OBJECTS = {
    "boxes": ("iuf", "numbers", 2),
    "classes": ("iu", "integers", 1),
    "crowd": ("b", "bool", 1),
    "areas": ("iuf", "numbers", 1),
    "has_mask": ("b", "bool", 1),
}


def image_problems(image, *, channels: Sequence[int], dtypes: Sequence[str]) -> list[str]:
    """Lists what makes an image unfit for a network, one sentence each.

    Args:
      image: what stands as "image" in an example.
      channels: numbers of channels that the task takes.
      dtypes: names of the types of pixels that its preprocessing takes.
    """
    if not isinstance(image, np.ndarray):
        return [f"image: expected a NumPy array, found {type(image).__name__}"]
    expected = " or ".join(f"[height, width, {number}]" for number in channels)
    if image.ndim != 3 or image.shape[2] not in channels or not image.size:
        return [f"image: expected {expected}, found the shape {list(image.shape)}"]
    if image.dtype.name in dtypes:
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            return ["image: expected finite pixels, found NaN or infinity"]
        return []
    problem = f"image: expected {' or '.join(dtypes)} pixels, found {image.dtype}"
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        cause = "scaled to 0..1? Multiply by 255 and round" if 0 <= low <= high <= 1 else "cast it"
        cause = cause if np.isfinite([low, high]).all() else "they must be finite"
        problem += f" from {low:g} to {high:g}: {cause}"
    elif image.dtype == np.uint16:
        problem += (
            f" from {image.min()} to {image.max()}: the network's preprocessing is for values of "
            "0 to 255. network.pixel_range maps other values to them; "
            "for all 16 bits, set it to 0 65535"
        )
    return [problem]


def find_split_problems(report: SplitReport, *, num_classes: int, trained: bool) -> list[str]:
    """Lists what only a whole split shows: boxes beside their masks, labels that teach nothing.

    Args:
      report: the counts over the split.
      num_classes: number of classes.
      trained: whether the split is trained on; a split that is only scored may lack classes.
    """
    if 2 * report.apart > report.with_box_and_mask:
        return [
            f"{report.apart} of {report.with_box_and_mask} boxes do not fit their masks (the "
            "mask's own box has an IoU below 0.5); expected [x_min, y_min, x_max, y_max] in pixels"
        ]
    found = set(report.label_pixels)
    if not found:
        return []
    if (num_classes == 2 or (trained and num_classes > 2)) and found == {0, IGNORE_LABEL}:
        return [
            "labels are 0 and 255 (ignored) in all examples, never 1: a 0/255 mask that is not "
            "mapped to the classes 0 and 1?"
        ]
    if trained and len(found - {IGNORE_LABEL}) < 2:
        only = (
            "".join(f"{value} in all examples" for value in found - {IGNORE_LABEL})
            or "255 (ignored)"
        )
        cause = "; a single class: the background is a class too" if num_classes == 1 else ""
        return [f"labels are {only}: there is nothing to learn{cause}"]
    return []


def find_problems(example: dict, *, num_classes: int, background: int | None = 0) -> list[str]:
    """Lists the errors that make an example unfit for training, one sentence each.

    Args:
      example: arrays as a `Source` gives them.
      num_classes: labels must be below this, or 255 (ignored).
      background: the class that no instance may have; None if there is none.
    """
    maps = [key for key in VALUE_OUTSIDE if key in example]
    problems = [
        f"{key}: expected a NumPy array, found {type(example[key]).__name__}"
        for key in maps
        if not isinstance(example[key], np.ndarray)
    ]
    if problems:
        return problems
    height_and_width = example["image"].shape[:2]
    for key in maps:
        if example[key].shape != height_and_width:
            problems.append(
                f"{key} has size {_size(example[key].shape)}, the image {_size(height_and_width)}"
            )
        elif key == "weights" and not _are_weights(example[key]):
            problems.append("weights: expected finite numbers from 0 on, found others")
        elif key == "instances" and not _are_whole(example[key]):
            problems.append(f"instances: expected integers, found {example[key].dtype}")
    for key in ("labels", "second_observer"):
        if key in example:
            problems += _label_problems(key, example[key], num_classes)
    if "classes" in example:
        problems += _object_problems(example, num_classes)
    shapes = [example[key].shape for key in ("instances", "labels") if key in example]
    if len(shapes) == 2 and shapes[0] == shapes[1] and background is not None:
        stray = np.count_nonzero((example["instances"] > 0) & (example["labels"] == background))
        if stray:
            problems.append(f"{stray} pixels of instances are labelled {background}, background")
    return problems


def find_notes(example: dict, *, official_size: tuple[int, int] | None) -> list[str]:
    """Lists unusual properties of an example that are no errors, one sentence each.

    Args:
      example: arrays as a `Source` gives them.
      official_size: height and width of the images as published; None if they have many sizes.
    """
    notes = []
    image = example["image"]
    if official_size is not None and image.shape[:2] != official_size:
        notes.append(
            f"not of the published size {official_size[0]}×{official_size[1]}: results are not "
            "comparable with published ones"
        )
    if image.min() == image.max():
        notes.append(f"the image is blank: {image.min()} everywhere")
    if "classes" in example:
        if len(example["classes"]) == 0:
            notes.append("no objects")
        if any(not mask.pixels.size for mask in example["masks"]):
            notes.append("an object's mask is empty: smaller than any pixel")
        if _are_repeated(example):
            notes.append("an object is listed twice, with the same class, box and mask")
        return notes
    labels = example["labels"]
    valid = labels[labels != IGNORE_LABEL]
    if valid.size == 0:
        notes.append("nothing is labelled: 255 (ignored) everywhere")
    elif valid.min() == valid.max():
        notes.append(f"the label map is empty: class {valid[0]} everywhere")
    return notes


def _label_problems(key: str, labels: np.ndarray, num_classes: int) -> list[str]:
    if labels.dtype.kind not in "biu":
        return [f"{key}: expected integers, found {labels.dtype}"]
    if labels.dtype == bool:
        return []
    outside = (labels < 0) | (labels >= num_classes)
    if not outside.any():
        return []
    wrong = np.unique(labels[outside & (labels != IGNORE_LABEL)])
    if wrong.size == 0:
        return []
    problem = f"{key} has {describe_values(wrong)}, but classes are 0 to {num_classes - 1}"
    if -1 in wrong:
        problem += ": is -1 meant for ignored pixels? They are 255"
    elif len(wrong) > 8:
        problem += ": an anti-aliased mask, resized with interpolation or saved as JPEG?"
    return [problem]


def _object_problems(example: dict, num_classes: int) -> list[str]:
    problems = []
    entries = [key for key in (*OBJECTS, *OPTIONAL_OBJECTS) if key in example]
    for key in entries:
        if key != "masks" and not isinstance(example[key], np.ndarray):
            problems.append(f"{key}: expected a NumPy array, found {type(example[key]).__name__}")
    if not isinstance(masks := example.get("masks", ()), list | tuple | np.ndarray):
        return [*problems, f"masks: expected a tuple, found {type(masks).__name__}"]
    for mask in masks:
        if not isinstance(mask, CroppedMask):
            problems.append(
                f"masks: expected a CroppedMask for each object, found {type(mask).__name__}; "
                "`segjax.data.instance_masks.crop_mask` makes one"
            )
            break
    if problems:
        return problems
    for key, (kinds, name, dimensions) in _OF_OBJECTS.items():
        if key not in example:
            continue
        array = example[key]
        if array.ndim != dimensions:
            problems.append(
                f"{key}: expected {'[n, 4]' if dimensions == 2 else '[n]'}, found the shape "
                f"{list(array.shape)}"
            )
        elif array.dtype.kind not in kinds:
            problems.append(f"{key}: expected {name}, found {array.dtype}")
    if problems:
        return problems
    counts = {key: len(example[key]) for key in entries}
    if len(set(counts.values())) > 1:
        return [f"the entries of objects differ in number: {counts}"]
    wrong = sorted(
        {number for number in example["classes"].tolist() if not 0 < number < num_classes}
    )
    if wrong:
        problems.append(
            f"classes has {wrong}, but the classes of objects are 1 to {num_classes - 1}"
        )
    height, width = example["image"].shape[:2]
    if example["boxes"].shape[1] != 4:
        return [*problems, f"boxes: expected [n, 4], found {list(example['boxes'].shape)}"]
    boxes = example["boxes"].astype(np.float32)  # as training computes
    wrong = ~((boxes >= 0).all(axis=1) & (boxes[:, 2:] <= (width, height)).all(axis=1))
    # COCO's scores also count objects without width or height within the image.
    if "annotated_boxes" not in example:
        wrong |= are_flat(boxes, max(height, width))
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        problems.append(
            "a box lies outside of the image or has no extent in float32: box "
            f"{place} is {example['boxes'][place].tolist()} in an image of {width} × {height}"
        )
    for mask in example.get("masks", ()):
        if mask.box[2] > width or mask.box[3] > height:
            problems.append(f"a mask reaches to {mask.box}, outside of the image")
    return problems


def _are_repeated(example: dict) -> bool:
    """Whether two objects of an example have the same class, box and mask."""
    objects = Counter(
        (number, box.tobytes(), mask.box, mask.pixels.tobytes())
        for number, box, mask in zip(
            example["classes"].tolist(), example["boxes"], example["masks"], strict=True
        )
    )
    return any(count > 1 for count in objects.values())


def _are_whole(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu"


def _are_weights(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf" and bool(np.all((array >= 0) & np.isfinite(array)))


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1 (a single number)"
