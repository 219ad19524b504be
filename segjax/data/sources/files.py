"""The files of official layouts, and their masks read strictly: doubtful values are errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segjax.data.images import SUFFIXES, note_other_files, read_image


@dataclass(frozen=True)
class ExampleFiles:
    """The files of one example in an official layout.

    Attributes:
      id: name of the example, unique in its split and usable as a file name.
      paths: file of each role, such as "image" and "labels".
      page: the page to read of a multi-page file.
    """

    id: str
    paths: dict[str, Path]
    page: int = 0


@dataclass(frozen=True)
class SourceListing:
    """The contents of a source folder.

    Attributes:
      splits: the complete examples of each split, in their official order.
      problems: missing and unpaired files, one sentence each, beginning with the path.
      notes: unusual findings that are no errors, one sentence each.
    """

    splits: dict[str, list[ExampleFiles]]
    problems: list[str]
    notes: list[str] = field(default_factory=list)


def keep_complete(examples: list[ExampleFiles], problems: list[str]) -> list[ExampleFiles]:
    """Keeps the examples whose files all exist, and adds a problem for each missing file."""
    complete = []
    for example in examples:
        missing = [role for role, path in example.paths.items() if not path.is_file()]
        problems += [f"{example.paths[role]}: missing ({role} of {example.id})" for role in missing]
        if not missing:
            complete.append(example)
    return complete


def pair_files(
    images: Path, labels: Path, problems: list[str], notes: list[str]
) -> list[ExampleFiles]:
    """Pairs the images of a folder with the PNG label maps of the same names in another.

    The pairs are sorted by name. Adds a problem for a missing or empty folder, for each image
    without labels or with the name of another image, and for each label map without an image. Adds
    a note that counts the files of other types in each folder.
    """
    notes += note_other_files(images)
    notes += note_other_files(labels, suffixes=(".png",), kind="PNG label maps")
    found = {}
    for path in sorted(images.glob("*")):
        if path.suffix.lower() in SUFFIXES and found.setdefault(path.stem, path) != path:
            problems.append(f"{path}: {found[path.stem].name} has the same name")
    if not found:
        problems.append(f"{images}: no images")
    unpaired = {path.stem: path for path in sorted(labels.glob("*.png"))}
    examples = []
    for name, path in found.items():
        unpaired.pop(name, None)
        examples.append(ExampleFiles(name, {"image": path, "labels": labels / f"{name}.png"}))
    problems += [f"{path}: no image of this name in {images}" for path in unpaired.values()]
    return keep_complete(examples, problems)


def note_sizes(found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """Notes each split whose number of examples differs from the published one."""
    return [
        f"{split}: {size} examples, published are {published[split]}"
        for split, size in found.items()
        if size != published[split]
    ]


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask of two values, black and white (or 0 and 1), as bool [H, W].

    Raises:
      ValueError: the file is unreadable or has other values.
    """
    return mask_of(read_image(path), path)


def mask_of(array: np.ndarray, path: Path) -> np.ndarray:
    """Turns an image [H, W, C] of two values, black and white (or 0 and 1), into bool [H, W].

    Black may be up to 8 and white from 247, because the palette of DRIVE's second observer has such
    colours.

    Raises:
      ValueError: other values occur (the message names `path`): the mask was resized with
        interpolation, compressed with loss, or is no mask.
    """
    if array.max() <= 1:
        return array[..., 0] > 0
    black = array.max(axis=2) <= 8
    white = (array.min(axis=2) >= 247) & (array.max(axis=2) <= 255)
    one_black, one_white = (np.all(array[part] == array[part][:1]) for part in (black, white))
    if one_black and one_white and np.all(black | white):
        return white
    kind = "" if np.all(array == array[..., :1]) else "colours, with "
    raise ValueError(
        f"{path}: {kind}{describe_values(np.unique(array))}; a mask has only 0 and 255. "
        "Was it resized with interpolation, or saved as JPEG?"
    )


def read_instances(path: Path) -> np.ndarray:
    """Reads a map of instance ids, 0 = background, as int32 [H, W].

    Raises:
      ValueError: the file is unreadable or in colour.
    """
    array = read_image(path)
    if array.shape[2] != 1:
        raise ValueError(f"{path}: {array.shape[2]} channels; an instance map has one")
    return array[..., 0].astype(np.int32)


def describe_values(values: np.ndarray) -> str:
    """Lists a few distinct values, or says how many there are and their range."""
    if len(values) <= 8:
        return "value" + "s" * (len(values) != 1) + " " + ", ".join(map(str, values.tolist()))
    return f"{len(values)} different values from {values.min()} to {values.max()}"
