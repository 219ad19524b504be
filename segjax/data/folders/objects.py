"""Objects in masks: the connected regions of classes, or numbered objects and their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segjax.data.instances import label_components
from segjax.labels import IGNORE_LABEL
from segjax.messages.lists import few

# Pixels are connected over their edges, not over corners, so that a line of one pixel parts two
# cells however it is drawn. Of 10,983 nuclei of DSB2018, parted by such lines where they touch,
# this leaves 11,044 regions; with corners, 9,059 would be left.
CONNECTIVITY = 4
TINY = 16  # pixels; objects with fewer are likely slips of the pen


def components(labels: np.ndarray) -> np.ndarray:
    """Numbers the connected regions of each class.

    Regions of different classes are different objects, even if they touch. Pixels are connected
    over their edges (4-connected). No region is left out, however small.

    Args:
      labels: uint8 [H, W], class ids, 0 = background, 255 = ignored.

    Returns:
      int32 [H, W]: 1..n, in the order of the classes; 0 = background or ignored.
    """
    numbered = np.zeros(labels.shape, np.int32)
    for number in np.flatnonzero(np.bincount(labels.ravel())):
        if number not in (0, IGNORE_LABEL):
            found = label_components(labels == number, connectivity=CONNECTIVITY)
            numbered += np.where(found > 0, found + numbered.max(), 0)
    return numbered


def give_classes(
    instances: np.ndarray, labels: np.ndarray, *, origin: str
) -> tuple[dict[str, np.ndarray], int]:
    """Gives numbered objects the classes of a second mask.

    An object has the class of most of its pixels, and all its pixels become of this class. Ignored
    pixels belong to no object.

    Args:
      instances: int32 [H, W], the number of the object at each pixel, 0 = none.
      labels: uint8 [H, W], class ids, 0 = background, 255 = ignored.
      origin: the files, for errors.

    Returns:
      "instances" int32 [H, W] and "labels" uint8 [H, W]; the number of objects whose pixels have
      several classes.

    Raises:
      ValueError: the masks differ in size, or most of an object is background.
    """
    if instances.shape != labels.shape:
        sizes = " and ".join(f"{x.shape[0]} × {x.shape[1]}" for x in (instances, labels))
        raise ValueError(f"{origin}: {sizes} pixels (height × width); expected the same size")
    is_object = (instances > 0) & (labels != IGNORE_LABEL)
    ids, places = np.unique(instances[is_object], return_inverse=True)
    votes = np.bincount(places * 256 + labels[is_object], minlength=256 * len(ids))
    votes = votes.reshape(len(ids), 256)
    winners = votes.argmax(axis=1)
    if lost := ids[winners == 0].tolist():
        raise ValueError(
            f"{origin}: object{'s' * (len(lost) > 1)} {few([*map(str, lost)])} of the one "
            f"lie{'s' * (len(lost) == 1)} on background of the other; expected a class for each "
            "object"
        )
    found = labels.copy()
    found[is_object] = winners[places]
    entries = {"instances": np.where(is_object, instances, 0).astype(np.int32), "labels": found}
    return entries, int(np.count_nonzero(np.count_nonzero(votes, axis=1) > 1))


@dataclass(frozen=True)
class ObjectFacts:
    """The objects of a mask.

    Attributes:
      areas: the pixels of each object, int64 [n].
      classes: the class id of each object, int64 [n].
      mixed: the number of objects whose pixels have several classes in a mask of classes.
    """

    areas: np.ndarray
    classes: np.ndarray
    mixed: int = 0


def object_facts(entries: Mapping[str, np.ndarray], *, mixed: int = 0) -> ObjectFacts:
    """Counts the pixels of each object in the "instances" and "labels" of an example."""
    instances = entries["instances"].ravel()
    _, first, areas = np.unique(instances, return_index=True, return_counts=True)
    is_object = instances[first] > 0
    classes = entries["labels"].ravel()[first].astype(np.int64)
    return ObjectFacts(areas[is_object], classes[is_object], mixed)


def object_notes(
    facts: Sequence[ObjectFacts],
    files: Sequence[object],
    *,
    classes: Sequence[str],
    connected: bool = False,
) -> list[str]:
    """Says what a user should know about the objects of masks, one sentence each.

    Args:
      facts: the objects of each mask.
      files: the file of each mask.
      classes: the names of the classes, the background first.
      connected: whether the objects are the connected regions of classes.
    """
    numbers = np.concatenate([np.zeros(0, np.int64), *(each.classes for each in facts)])
    text = f"{len(numbers)} objects in {len(facts)} masks"
    if len(classes) > 2:
        counts = np.bincount(numbers, minlength=len(classes))[1:].tolist()
        text += ": " + ", ".join(f"{n} {name}" for n, name in zip(counts, classes[1:], strict=True))
    if connected:
        text += (
            ". Each connected region of a class is an object (connected over edges of pixels, not "
            "over corners); cells of a class that touch are one object"
        )
    notes = [text]
    tiny = [int(np.count_nonzero(each.areas < TINY)) for each in facts]
    if any(tiny):
        notes.append(
            f"{sum(tiny)} of {len(numbers)} objects have fewer than {TINY} pixels "
            f"({_most_in(files, tiny)}). Stray pixels? They are kept, and scores count them"
        )
    mixed = [each.mixed for each in facts]
    if any(mixed):
        notes.append(
            f"{sum(mixed)} of {len(numbers)} objects have pixels of several classes "
            f"({_most_in(files, mixed)}). Each gets the class of most of its pixels"
        )
    return notes


def _most_in(files: Sequence[object], counts: Sequence[int]) -> str:
    order = sorted(range(len(files)), key=lambda place: -counts[place])
    return "most in " + few([str(files[place]) for place in order if counts[place]], most=2)
