"""Finds errors and oddities in the image and the labels of one example."""

import numpy as np

from segjax.data.sources.files import describe_values
from segjax.data.sources.protocol import IGNORE_LABEL, VALUE_OUTSIDE


def find_problems(example: dict, *, num_classes: int) -> list[str]:
    """Lists the errors that make an example unfit for training, one sentence each.

    Args:
      example: arrays as a `Source` gives them.
      num_classes: labels must be below this, or 255 (ignored).
    """
    problems = []
    height_and_width = example["image"].shape[:2]
    for key in VALUE_OUTSIDE:
        if key in example and example[key].shape != height_and_width:
            problems.append(
                f"{key} has size {_size(example[key])}, the image {_size(example['image'])}"
            )
    for key in ("labels", "second_observer"):
        if key in example:
            problems += _label_problems(key, example[key], num_classes)
    if "classes" in example:
        problems += _object_problems(example, num_classes)
    if "instances" in example and example["instances"].shape == example["labels"].shape:
        stray = np.count_nonzero((example["instances"] > 0) & (example["labels"] == 0))
        if stray:
            problems.append(f"{stray} pixels of instances are labelled 0, background")
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
        return notes
    labels = example["labels"]
    valid = labels[labels != IGNORE_LABEL]
    if valid.size == 0:
        notes.append("nothing is labelled: 255 (ignored) everywhere")
    elif valid.min() == valid.max():
        notes.append(f"the label map is empty: class {valid[0]} everywhere")
    return notes


def _label_problems(key: str, labels: np.ndarray, num_classes: int) -> list[str]:
    values = np.flatnonzero(np.bincount(labels.ravel()))
    if num_classes == 2 and np.array_equal(values, [0, IGNORE_LABEL]):
        return [f"{key} has only 0 and 255 (ignored): a 0/255 mask not mapped to class ids?"]
    wrong = values[(values >= num_classes) & (values != IGNORE_LABEL)]
    if wrong.size == 0:
        return []
    problem = f"{key} has {describe_values(wrong)}, but classes are 0 to {num_classes - 1}"
    if len(wrong) > 8:
        problem += ": an anti-aliased mask, resized with interpolation or saved as JPEG?"
    return [problem]


def _object_problems(example: dict, num_classes: int) -> list[str]:
    problems = []
    counts = {key: len(example[key]) for key in ("classes", "boxes", "masks", "crowd", "areas")}
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
    boxes = example["boxes"]
    inside = (boxes >= 0).all() and (boxes[:, 2:] <= (width, height)).all()
    if not inside or not (boxes[:, 2:] > boxes[:, :2]).all():
        problems.append("a box lies outside of the image or has no extent")
    for mask in example["masks"]:
        if mask.box[2] > width or mask.box[3] > height:
            problems.append(f"a mask reaches to {mask.box}, outside of the image")
    return problems


def _size(array: np.ndarray) -> str:
    return "×".join(map(str, array.shape[:2]))
