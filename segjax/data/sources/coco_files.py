"""Objects with masks from any JSON file in COCO's format, read image by image."""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segjax.coco.ids import Id, result_ids
from segjax.coco.index import CocoIndex, read_coco_index
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import QUARTER_TURNS, Orientation, note_turned, read_tag
from segjax.data.sources.coco_example import read_coco_example
from segjax.data.sources.coco_images import (
    check_paths,
    example_names,
    files_in,
    find_files,
    note_changes,
    note_unused,
    read_sizes,
    size_in_header,
)
from segjax.data.sources.empty_images import choose_images, note_left_out
from segjax.messages.lists import few

ORIENTATION = "orientation (files.orientation)"  # as messages name the setting
SUSPECTS_DECODED = 100
COUNTS_SHOWN = 10


@dataclass(frozen=True, eq=False)
class CocoInstances:
    """The images and objects of a file in COCO's format, read on demand.

    An example is as `segjax.data.sources.protocol.Source` says for objects: "id" str, "image_id"
    int or str as in the file, "image" uint8 or uint16 [H, W, 3], and for n objects "boxes" float32
    [n, 4] (as annotated, clipped to the image), "classes" int32 [n], "masks" (a tuple of
    `CroppedMask`), "crowd" bool [n], "areas" float32 [n] (as annotated, or else the pixels of the
    mask) and "has_mask" bool [n]. An object with a box and no segmentation has the pixels of its
    box as mask, and False as "has_mask": no mask is trained on it, and scores of masks ignore it.

    Images are sorted by their ids. An "id" is the name of the image file without its suffix, or the
    image's id if two files have the same name. Classes are 1, 2, ... in the order of the category
    ids, which may have gaps, or of `classes`. Masks are COCO's own, pixel by pixel; an object too
    small for any pixel has an empty mask.

    Opening reads the whole file once. COCO's train2017 takes half a minute and, for a moment, 1 GB;
    about 30 MB are kept and pickled to worker processes.

    Attributes:
      annotations: the JSON file.
      images: the folder of the image files.
      empty_share: the largest share of images without objects, or with crowds alone; see
        `choose_images`. 0 leaves them all out, as detectron2 does for training
        (FILTER_EMPTY_ANNOTATIONS).
      seed: decides which images without objects are chosen.
      classes: names of the classes 1, 2, ..., to which categories are matched by name; None takes
        the file's categories.
      leave_out_others: leave out the objects of categories that `classes` does not name; a note
        counts them. Without it, such objects are an error.
      orientation: "upright" turns images by their EXIF tags, as viewers do, and annotations belong
        to the upright image; "stored" ignores the tags, for annotations that were drawn on the
        bitmap as it is stored. See `segjax.data.orientation`.
      for_scores: include objects without width or height within the image, which COCO's scores
        count, and for n objects "annotated_boxes" float64 [n, 4], [x, y, width, height] as in the
        file, and "annotated_areas" float64 [n].
      ids: the name of each example.

    Raises:
      FileNotFoundError: the file, the folder or an image is missing.
      ValueError: the file is not in COCO's format, no image is left, or objects are of a category
        that `classes` does not name, and are not left out.
    """

    annotations: Path
    images: Path
    empty_share: float = field(default=1.0, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    classes: tuple[str, ...] | None = field(default=None, kw_only=True)
    leave_out_others: bool = field(default=False, kw_only=True)
    orientation: Orientation = field(default="upright", kw_only=True)
    for_scores: bool = field(default=False, kw_only=True)
    ids: tuple[str, ...] = field(init=False, repr=False)
    notes: tuple[str, ...] = field(init=False, repr=False)
    _index: CocoIndex = field(init=False, repr=False)
    _places: np.ndarray = field(init=False, repr=False)  # of the examples in the index

    def __post_init__(self):
        path, folder = check_paths(self.annotations, self.images)
        index = read_coco_index(
            path, read_sizes=partial(read_sizes, folder, orientation=self.orientation)
        )
        files = find_files(folder, index.file_names)
        notes = [*index.notes]
        if self.classes is not None:
            notes += _note_categories(index, self.classes, leave_out=self.leave_out_others)
            index = index.only(self.classes)
        counts = _object_counts(index)
        places = choose_images(counts, empty_share=self.empty_share, seed=self.seed)
        notes += note_left_out(counts, len(places), self.empty_share)
        if not len(places):
            needed = " with objects" if self.empty_share < 1 else ""
            reason = f": {'; '.join(notes)}" if needed and notes else ""
            raise ValueError(f"{path}: no images{needed}{reason}")
        names = [files.get(name, name) for name in index.file_names]
        notes += note_changes(index.file_names, names)
        index = replace(index, file_names=tuple(names))
        for name, value in (
            ("annotations", path),
            ("images", folder),
            ("ids", example_names(index, places)),
            ("_index", index),
            ("_places", places),
        ):
            object.__setattr__(self, name, value)
        self._check_files()
        notes += note_unused(folder, names, path)
        notes += note_turned(
            [folder / names[place] for place in places],
            orientation=self.orientation,
            setting=ORIENTATION,
        )
        object.__setattr__(self, "notes", tuple(notes))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)} in {self.annotations}")
        place = self._places[number]
        example = read_coco_example(
            self._index,
            int(place),
            self.images,
            classes=self.class_names[1:],
            orientation=self.orientation,
            setting=ORIENTATION,
            for_scores=self.for_scores,
        )
        return {"id": self.ids[number], **example}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, "background" first."""
        return ("background", *(self.classes or self._index.categories.values()))

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """The category ids of the classes 1, 2, ..., which results in COCO's format need.

        A class that the file does not list has a number that the file does not use.
        """
        return result_ids(self.class_names[1:], listed=self._index.categories).ids

    @property
    def class_counts(self) -> tuple[int, ...]:
        """The annotations of each class 1, 2, ..., crowds included."""
        categories = self._index.categories.values()
        counts = dict(zip(categories, self._index.class_counts.tolist(), strict=True))
        return tuple(counts.get(name, 0) for name in self.class_names[1:])

    @property
    def image_ids(self) -> np.ndarray:
        """The image id of each example as in the file, int64 [n], or object [n] for texts."""
        return self._index.image_ids[self._places]

    @property
    def object_counts(self) -> np.ndarray:
        """The objects of each example, crowds left out, int64 [n]."""
        return _object_counts(self._index)[self._places]

    @property
    def sizes(self) -> np.ndarray:
        """The height and width of each image, int32 [n, 2]."""
        return self._index.sizes[self._places]

    def file_problems(self) -> dict[int, str]:
        """Returns the problem of each example whose image file does not fit, by example.

        Only headers are read. Where they differ from the annotations, the file is decoded to find
        out why, but no more than `SUSPECTS_DECODED` files.
        """
        paths = [self.images / self._index.file_names[place] for place in self._places]
        sizes = tqdm(
            map_in_threads(size_in_header, paths),
            "reading sizes",
            len(paths),
            unit="image",
            leave=False,
            disable=None,
        )
        annotated = map(tuple, self.sizes.tolist())
        suspects = [
            number
            for number, (path, found, size) in enumerate(zip(paths, sizes, annotated, strict=True))
            if found != size and not self._is_turned(path, found, size)
        ]
        problems = {}
        for number in suspects[:SUSPECTS_DECODED]:
            try:
                self[number]
            except (OSError, ValueError) as error:
                problems[number] = str(error)
        return problems

    def _is_turned(self, path: Path, stored: tuple[int, int] | None, size: tuple[int, int]) -> bool:
        """Returns whether a stored bitmap has this size once it is upright."""
        return (
            self.orientation == "upright"
            and stored == size[::-1]
            and read_tag(path) in QUARTER_TURNS
        )

    def _check_files(self) -> None:
        """Raises FileNotFoundError for missing images, before training starts."""
        present = files_in(self.images)
        names = [self._index.file_names[place] for place in self._places]
        missing = [
            name for name in names if name not in present and not os.path.isfile(self.images / name)
        ]
        if missing:
            raise FileNotFoundError(
                f"{self.images / missing[0]}: missing, and {len(missing) - 1} more of the "
                f"{len(names)} images of {self.annotations}"
            )


def _object_counts(index: CocoIndex) -> np.ndarray:
    """The objects of each image that training can use, int64 [n]."""
    usable = ~index.crowd & ~index.flat
    return np.diff(np.concatenate([[0], np.cumsum(usable)])[index.first])


def _note_categories(index: CocoIndex, classes: tuple[str, ...], *, leave_out: bool) -> list[str]:
    """Notes categories and classes that do not match by name.

    Raises:
      ValueError: objects are of a category that is no class, and are not left out.
    """
    names = tuple(index.categories.values())
    unknown = {
        name: int(count)
        for name, count in zip(names, index.class_counts, strict=True)
        if name not in classes
    }
    used = sorted(((count, name) for name, count in unknown.items() if count), reverse=True)
    shown = partial(few, most=5)
    notes = []
    if used and not leave_out:
        raise ValueError(
            f"{index.path} has categories that are no classes of the run: "
            f"{shown([f'{name!r} ({count} annotations)' for count, name in used])}. The "
            f"classes are {shown(classes)}. To leave out these objects, set "
            "other_categories to leave_out"
        )
    if used:
        counts = few([f"{name} {count}" for count, name in used], most=COUNTS_SHOWN)
        notes.append(
            f"{sum(count for count, _ in used)} of {index.class_counts.sum()} annotations left "
            f"out: of categories that are no classes ({counts})"
        )
    if empty := [name for name, count in unknown.items() if not count]:
        notes.append(
            f"categories that are no classes, and that nothing is annotated with: {shown(empty)}"
        )
    if missing := [name for name in classes if name not in names]:
        notes.append(f"lists no category for these classes, matched by name: {shown(missing)}")
    elif not unknown and names != classes:
        notes.append("lists the categories in another order; they are matched by name")
    return notes
