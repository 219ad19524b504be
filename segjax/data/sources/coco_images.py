"""The image files of a JSON file in COCO's format: paths, sizes and notes."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from segjax.coco.index import CocoIndex
from segjax.data.images import SUFFIXES, note_other_files, read_image
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import Orientation
from segjax.messages.lists import few, list_problems


def check_paths(annotations: Path, images: Path) -> tuple[Path, Path]:
    """Returns a file of annotations and the folder of its images as absolute paths.

    Raises:
      FileNotFoundError: one of them does not exist.
    """
    path, folder = (Path(given).expanduser() for given in (annotations, images))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected annotations in COCO's format")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected the images of {path}")
    return path.absolute(), folder.absolute()


def find_files(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Finds files whose names begin with a folder that is not there, or have back-slashes.

    Returns:
      For each such name the part of it that is a file in the folder.

    Raises:
      ValueError: two images would be the same file.
    """
    present = files_in(folder)
    found: dict[str, str] = {}
    for name in names:
        if name in present or os.path.isfile(folder / name):
            continue
        parts = PurePosixPath(name.replace("\\", "/")).parts
        for start in range(len(parts)):
            shorter = "/".join(parts[start:])
            if shorter in present or ("/" in shorter and os.path.isfile(folder / shorter)):
                found[name] = shorter
                break
    users: dict[str, str] = {}
    for name in names:
        file = found.get(name, name)
        if users.setdefault(file, name) != name:
            raise ValueError(
                f"{folder / file}: the file names {users[file]!r} and {name!r} both lead to it; "
                "give the folder that holds their folders"
            )
    return found


def files_in(folder: Path) -> set[str]:
    """The names of the files in a folder; neither folders nor links that lead nowhere."""
    return {entry.name for entry in os.scandir(folder) if entry.is_file()}


def note_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Says how many file names were read in another way than they are written, or nothing."""
    changed = [before for before, after in zip(old, new, strict=True) if before != after]
    if not changed:
        return []
    return [
        f"{len(changed)} of {len(new)} file names read without the folder that they begin "
        f"with, such as {changed[0]!r:.80}"
    ]


def note_unused(folder: Path, listed: Collection[str], annotations: Path) -> list[str]:
    """Counts the files of a folder that are no images, and the images that are not listed.

    Hidden files, folders and the annotations themselves do not count.

    Args:
      folder: the folder of the images.
      listed: the file names in the annotations.
      annotations: the file of the annotations.
    """
    listed = set(listed)
    unlisted = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name not in listed
        and Path(entry.name).suffix.lower() in SUFFIXES
        and not entry.name.startswith(".")
    )
    odd = [folder / name for name in listed if Path(name).suffix.lower() not in SUFFIXES]
    notes = note_other_files(folder, without=(annotations, *odd))
    if unlisted:
        notes.append(
            f"{len(unlisted)} images in {folder} are not listed, and not used: {few(unlisted)}"
        )
    return notes


def read_sizes(
    folder: Path, names: Sequence[str], *, orientation: Orientation
) -> list[tuple[int, int]]:
    """Reads the heights and widths of image files.

    Raises:
      FileNotFoundError: an image is missing.
      ValueError: an image is unreadable.
    """
    files = find_files(folder, names)
    paths = [folder / files.get(name, name) for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{missing[0]}: missing, and {len(missing) - 1} more of {len(paths)} images whose "
            "sizes are not in the annotations"
        )

    def size(path):
        try:
            return read_image(path, orientation=orientation).shape[:2]
        except ValueError as error:
            return error

    found = list(map_in_threads(size, paths))
    if unreadable := [each for each in found if isinstance(each, ValueError)]:
        raise ValueError(list_problems(f"the images of {folder}", [*map(str, unreadable)]))
    return [each for each in found if not isinstance(each, ValueError)]


def size_in_header(path: Path) -> tuple[int, int] | None:
    """The height and width of an image as its header says; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception:
        return None


def example_names(index: CocoIndex, places: np.ndarray) -> tuple[str, ...]:
    """The names of the files without suffix, or the ids of the images if two names are equal."""
    names = tuple(Path(index.file_names[place]).stem for place in places)
    if len(set(names)) < len(names):
        return tuple(map(str, index.image_ids[places].tolist()))
    return names
