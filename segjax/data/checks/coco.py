"""Checks a file in COCO's format: every image, every mask, and what is listed twice or not."""

import os
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segjax.coco.index import CocoIndex, read_coco_index
from segjax.data.checks.check import check_sheet, fill_report
from segjax.data.checks.report import CheckReport
from segjax.data.images import read_image
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import Orientation, note_turned
from segjax.data.sources.coco_example import read_coco_example
from segjax.data.sources.coco_images import (
    check_paths,
    example_names,
    find_files,
    note_changes,
    note_unused,
)
from segjax.messages.lists import few

ORIENTATION = "--orientation (files.orientation of a training)"  # as messages name the setting
NAMES_SHOWN = 10


def check_coco(
    annotations: Path,
    images: Path,
    *,
    orientation: Orientation = "upright",
    contact_sheet: Path | None = None,
) -> CheckReport:
    """Reads every image and mask of a JSON file in COCO's format and lists what is wrong.

    A file that breaks COCO's format in a way that training refuses has this as its only problem:
    nothing else can be read before it is mended.

    Args:
      annotations: the JSON file.
      images: the folder of the image files.
      orientation: how images with an EXIF orientation are read; see `CocoInstances`.
      contact_sheet: PNG file to write, with examples and their objects.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: the contact sheet is no PNG.
    """
    check_sheet(contact_sheet)
    path, folder = check_paths(annotations, images)
    report = CheckReport(path.name, str(folder), ())
    try:
        read_sizes = partial(_sizes_of_readable, folder, orientation=orientation)
        index = read_coco_index(path, read_sizes=read_sizes)
        files = find_files(folder, index.file_names)
    except ValueError as error:
        report.problems.append(str(error))
        report.notes.append("no image was read: the file must be mended first")
        return report
    names = tuple(files.get(name, name) for name in index.file_names)
    report.class_names = ("background", *index.categories.values())
    report.notes += [*index.notes, *note_changes(index.file_names, names)]
    index = replace(index, file_names=names)
    is_there = [(folder / name).is_file() for name in names]
    present = np.flatnonzero(is_there)
    paths = [folder / names[place] for place in present]
    report.problems += [*_missing(index, folder, is_there), *_listed_twice(index, paths, present)]
    report.problems += _nothing_to_learn(index)
    report.notes += _without_objects(index)
    report.notes += note_unused(folder, names, path)
    report.notes += note_turned(paths, orientation=orientation, setting=ORIENTATION)
    readers = [
        partial(_read, index, int(place), folder, name, orientation)
        for place, name in zip(present, example_names(index, present), strict=True)
    ]
    return fill_report(report, {path.stem: readers}, find_copies=True, contact_sheet=contact_sheet)


def _read(index: CocoIndex, place: int, folder: Path, name: str, orientation: Orientation) -> dict:
    example = read_coco_example(index, place, folder, orientation=orientation, setting=ORIENTATION)
    return {"id": name, **example}


def _sizes_of_readable(
    folder: Path, names: list[str], *, orientation: Orientation
) -> list[tuple[int, int]]:
    """Reads heights and widths; 0 for missing and unreadable images, which the check then finds."""
    files = find_files(folder, names)

    def size(name: str) -> tuple[int, int]:
        try:
            image = read_image(folder / files.get(name, name), orientation=orientation)
        except (OSError, ValueError):
            return 0, 0
        return image.shape[0], image.shape[1]

    sizes = map_in_threads(size, names)
    return list(tqdm(sizes, "reading sizes", len(names), unit="image", leave=False))


def _missing(index: CocoIndex, folder: Path, is_there: list[bool]) -> list[str]:
    missing = [name for name, there in zip(index.file_names, is_there, strict=True) if not there]
    if not missing:
        return []
    shown = few(missing, most=NAMES_SHOWN)
    return [f"{len(missing)} of {len(is_there)} images are missing in {folder}: {shown}"]


def _listed_twice(index: CocoIndex, paths: list[Path], present: np.ndarray) -> list[str]:
    """Names the image files that several images of the file have, also by links or other paths."""
    ids = defaultdict(list)
    for path, number in zip(paths, index.image_ids[present].tolist(), strict=True):
        ids[os.path.realpath(path)].append(number)
    return [
        f"{path}: listed as several images, with the ids {few([*map(str, numbers)])}; the objects "
        "of one are background in the others. List the file once, with all its objects"
        for path, numbers in ids.items()
        if len(numbers) > 1
    ]


def _nothing_to_learn(index: CocoIndex) -> list[str]:
    if not len(index.image_ids):
        return [f"{index.path}: no images"]
    if not np.any(~index.crowd & ~index.flat):
        return [f"{index.path}: no object that is not a crowd: there is nothing to learn"]
    return []


def _without_objects(index: CocoIndex) -> list[str]:
    names = index.categories.values()
    unused = [name for name, count in zip(names, index.class_counts, strict=True) if not count]
    return [f"no object is annotated as: {few(unused, most=NAMES_SHOWN)}"] if unused else []
