"""An index of a COCO JSON file: where each image's annotations lie in it.

COCO's own file of 860,000 annotations takes 3 GB as Python objects. The index parses each
annotation once, checks it and keeps 18 bytes: its place in the file, its category and two flags.
Reading an image then parses that image's annotations alone, in any process.
"""

import math
from array import array
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segjax.coco.annotations import (
    CONTRADICTIONS,
    DECODER,
    ODDITIES,
    Annotation,
    outline_of,
    read_annotation,
)
from segjax.coco.ids import Id, id_key
from segjax.coco.json_parts import read_parts
from segjax.coco.listing import choose_categories, keys_of, read_images


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The images of a COCO file, ordered by id, and the places of their annotations.

    Attributes:
      path: the JSON file.
      categories: category names by id, ascending. Ids are the file's own, numbers or texts.
      image_ids: the file's own ids, ascending; int64 [n], or object [n] for texts.
      file_names: file name of each image.
      sizes: height and width of each image, int32 [n, 2]; 0 if unknown.
      first: image i has annotations first[i] to first[i + 1] − 1, int64 [n + 1].
      starts: each annotation's first byte in the file, int64 [m].
      lengths: each annotation's length in bytes, int32 [m].
      category: each annotation's place in `categories`, int32 [m].
      crowd: whether each annotation is a crowd, bool [m].
      flat: whether each annotation has no width or height within the image, bool [m].
      class_counts: usable annotations of each category, int64 [categories].
      notes: sentences about left-out annotations and deviations from COCO's format.
    """

    path: Path
    categories: dict[Id, str]
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    flat: np.ndarray
    class_counts: np.ndarray
    notes: tuple[str, ...]

    def only(self, names: Collection[str]) -> "CocoIndex":
        """Returns the index without the annotations of categories that are not among `names`."""
        chosen = np.array([name in names for name in self.categories.values()], bool)
        kept = chosen[self.category]
        return replace(
            self,
            first=np.concatenate([[0], np.cumsum(kept)])[self.first],
            class_counts=self.class_counts * chosen,
            **{
                name: getattr(self, name)[kept]
                for name in ("starts", "lengths", "category", "crowd", "flat")
            },
        )

    def annotations(self, image: int, *, flat: bool = False) -> list[Annotation]:
        """Parses the annotations of the image at an index, in the order of the file.

        Args:
          image: the number of the image in the index.
          flat: include annotations without width or height within the image.

        Raises:
          ValueError: the file has changed since it was indexed.
        """
        found = []
        key = id_key(self.image_ids[image : image + 1].tolist()[0])
        with self.path.open("rb") as file:
            for place in range(self.first[image], self.first[image + 1]):
                if self.flat[place] and not flat:
                    continue
                file.seek(self.starts[place])
                try:
                    text = file.read(self.lengths[place]).decode("utf-8")
                    annotation = read_annotation(DECODER.decode(text))
                except ValueError:
                    annotation = None
                if annotation is None or annotation.image != key:
                    raise ValueError(f"{self.path}: changed since it was opened")
                found.append(annotation)
        return found


def read_coco_index(
    path: Path, *, read_sizes: Callable[[list[str]], list[tuple[int, int]]] | None = None
) -> CocoIndex:
    """Indexes a JSON file in COCO's format ("images", "annotations" and "categories").

    Annotations without a mask and a box are left out. Those without width or height within the
    image (in float32, as training computes them) are marked as `flat`. The notes count them and
    what deviates from COCO's format. A category named "background", or with another's name, is left
    out if nothing is annotated with it.

    Args:
      path: the JSON file.
      read_sizes: file names → heights and widths, called for the images without a size.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not in COCO's format; the message names the image or annotation.
    """
    annotations = _Annotations(path)
    parts = read_parts(path, annotations.add, ("images", "annotations", "categories"))
    image_ids, file_names, sizes, notes = read_images(path, parts["images"])
    if (unknown := np.flatnonzero((sizes < 1).any(axis=1))).size and read_sizes is not None:
        sizes[unknown] = read_sizes([file_names[place] for place in unknown])
        notes += [f"{len(unknown)} of {len(sizes)} images have no size: read from the files"]
    category_keys = keys_of(path, parts["categories"], "category")
    image = annotations.places_of(image_ids.tolist(), "image")
    category = annotations.places_of(category_keys, "category")
    counts = np.bincount(category, minlength=len(category_keys))
    categories, kept_categories, category_notes = choose_categories(
        path, parts["categories"], category_keys, counts
    )
    annotations.check_sizes(sizes[image])
    notes += category_notes + annotations.notes()

    box = np.array(annotations.boxes).reshape(-1, 4)
    flat = _are_flat(box, sizes[image])
    no_box = np.isnan(box).any(axis=1)
    notes = [
        *(
            f"{np.count_nonzero(left_out)} of {len(box)} annotations left out: {reason}"
            for left_out, reason in (
                (flat & ~no_box, "no width or height within the image"),
                (no_box, "neither bbox nor segmentation"),
            )
            if left_out.any()
        ),
        *notes,
    ]
    if len(box) and not np.any(~flat):
        raise ValueError(f"{path}: no annotation is usable. {'; '.join(notes)}")
    kept = np.flatnonzero(~no_box)
    kept = kept[np.argsort(image[kept], kind="stable")]
    usable = np.bincount(category[~flat], minlength=len(category_keys))
    # Every category that is annotated is kept.
    place_of_category = np.full(len(category_keys), -1, np.int32)
    place_of_category[kept_categories] = np.arange(len(kept_categories))
    return CocoIndex(
        path=path,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        first=np.searchsorted(image[kept], np.arange(len(image_ids) + 1)),
        starts=np.array(annotations.starts, np.int64)[kept],
        lengths=np.array(annotations.lengths, np.int32)[kept],
        category=place_of_category[category[kept]],
        crowd=np.array(annotations.crowd, bool)[kept],
        flat=flat[kept],
        class_counts=usable[kept_categories],
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class ImageList:
    """The images and categories of a COCO file, without its annotations.

    Attributes:
      path: the JSON file.
      image_ids: the file's own ids, ascending.
      file_names: file name of each image.
      sizes: height and width of each image, int32 [n, 2]; 0 if unknown.
      categories: category names by id; empty if the file has none.
      notes: sentences about deviations from COCO's format.
    """

    path: Path
    image_ids: tuple[Id, ...]
    file_names: tuple[str, ...]
    sizes: np.ndarray
    categories: dict[Id, str]
    notes: tuple[str, ...]


def read_image_list(path: Path) -> ImageList:
    """Reads images and categories of a JSON file in COCO's format, which may have no annotations.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not in COCO's format.
    """
    annotations = _Annotations(path)
    parts = read_parts(path, annotations.add, ("images",))
    image_ids, file_names, sizes, notes = read_images(path, parts["images"])
    content = parts.get("categories", [])
    keys = keys_of(path, content, "category")
    counts = np.zeros(len(keys), np.int64)
    if annotations.ids["category"]:
        counts = np.bincount(annotations.places_of(keys, "category"), minlength=len(keys))
    categories, _, category_notes = choose_categories(path, content, keys, counts)
    return ImageList(
        path,
        tuple(image_ids.tolist()),
        file_names,
        sizes,
        categories,
        tuple(notes + category_notes),
    )


class _Annotations:
    """Collects the needed entries of all annotations in packed arrays."""

    def __init__(self, path: Path):
        self.path = path
        # Ids may be texts or huge; a number for each different id stands for it.
        self.known: dict[str, dict[Id, int]] = {"image": {}, "category": {}}
        self.ids = {"image": array("i"), "category": array("i")}
        self.starts, self.lengths = array("q"), array("i")
        self.boxes = array("d")
        self.mask_sizes = array("i")  # of run lengths; 0 for other annotations
        self.crowd, self.box_only = array("b"), array("b")
        self.oddities: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.with_box_and_mask = 0

    def add(self, entry: dict, start: int, end: int) -> None:
        annotation = read_annotation(entry)
        for kind, key in (("image", annotation.image), ("category", annotation.category)):
            known = self.known[kind]
            self.ids[kind].append(known.setdefault(key, len(known)))
        self.boxes.extend(annotation.box or (math.nan,) * 4)
        segmentation = annotation.segmentation
        has_runs = isinstance(segmentation, dict)
        self.mask_sizes.extend(segmentation["size"] if has_runs else (0, 0))
        self.crowd.append(annotation.crowd)
        self.box_only.append(segmentation is None and annotation.box is not None)
        self.starts.append(start)
        self.lengths.append(end - start)
        self.with_box_and_mask += segmentation is not None and "bbox" not in annotation.oddities
        for oddity in annotation.oddities:
            self.oddities[oddity] += 1
            if oddity not in self.examples:
                self.examples[oddity] = f"annotation {entry.get('id')!r:.40}"
                if oddity in CONTRADICTIONS and (outline := outline_of(segmentation)):
                    self.examples[oddity] += (
                        f" has bbox {entry['bbox']}, and its mask reaches from "
                        f"[{outline[0]:g}, {outline[1]:g}] to [{outline[2]:g}, {outline[3]:g}]"
                    )

    def places_of(self, keys: list, kind: str) -> np.ndarray:
        """Finds each annotation's image or category among all, given by their ids."""
        places = {id_key(value): place for place, value in enumerate(keys)}
        unknown = [key for key in self.known[kind] if key not in places]
        ids = np.array(self.ids[kind], np.int64)
        if unknown:
            numbers = [self.known[kind][key] for key in unknown]
            raise ValueError(
                f"{self.path}: {np.count_nonzero(np.isin(ids, numbers))} annotations have "
                f"the {kind}_id of no {kind} in the file, such as {unknown[0]!r:.40}"
            )
        of_number = np.array([places[key] for key in self.known[kind]], np.int64)
        return of_number[ids]

    def check_sizes(self, sizes: np.ndarray) -> None:
        """Raises ValueError for run lengths of another size than their image."""
        masks = np.array(self.mask_sizes, np.int64).reshape(-1, 2)
        wrong = (masks > 0).any(axis=1) & (sizes > 0).all(axis=1) & (masks != sizes).any(axis=1)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            with self.path.open("rb") as file:
                file.seek(self.starts[place])
                entry = DECODER.decode(file.read(self.lengths[place]).decode("utf-8"))
            raise ValueError(
                f"{self.path}: annotation {entry.get('id')!r:.40} of image "
                f"{entry.get('image_id')!r:.40}: expected run lengths for "
                f"{sizes[place].tolist()}, found {masks[place].tolist()}"
            )

    def notes(self) -> list[str]:
        """Says how many annotations have which oddity.

        Raises:
          ValueError: most boxes contradict their masks, such as corners instead of a corner and a
            size.
        """
        total = len(self.starts)
        for oddity in CONTRADICTIONS:
            if 2 * (count := self.oddities[oddity]) > self.with_box_and_mask:
                raise ValueError(
                    f"{self.path}: {count} of {total} annotations {ODDITIES[oddity]}: "
                    f"{self.examples[oddity]}"
                )
        notes = []
        if count := sum(self.box_only):
            notes.append(
                f"{count} of {total} annotations have a box and no segmentation: they count in box "
                "scores and train class and box, but not the mask"
            )
        if total and sum(self.crowd) == total:
            notes.append(
                f"all {total} annotations are crowds (iscrowd 1), groups that nobody told apart: "
                "nothing is trained or scored; single objects need iscrowd 0"
            )
        for oddity, text in ODDITIES.items():
            if count := self.oddities[oddity]:
                example = f" ({self.examples[oddity]})" if oddity in CONTRADICTIONS else ""
                notes.append(f"{count} of {total} annotations {text}{example}")
        return notes


def are_flat(boxes: np.ndarray, longer_side: np.ndarray | float) -> np.ndarray:
    """Whether boxes have no width or no height for training, bool [n].

    They count as flat up to 2^-20 of the image's longer side: float32, in which training computes,
    has about eight steps in that length, so that a scaled box keeps an extent.

    Args:
      boxes: float32 [n, 4], [x_min, y_min, x_max, y_max].
      longer_side: the longer side of the image in pixels, one for all boxes or one for each.
    """
    extent = boxes[:, 2:] - boxes[:, :2]
    return ~(extent > np.reshape(longer_side, (-1, 1)) * 2.0**-20).all(axis=1)


def _are_flat(box: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes [x, y, width, height] have no width or height within their images."""
    sizes = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
    low = np.maximum(box[:, :2], 0).astype(np.float32)
    high = np.minimum(box[:, :2] + box[:, 2:], sizes).astype(np.float32)
    longest = np.where(np.isinf(sizes), 0, sizes).max(axis=1, initial=0)
    return are_flat(np.concatenate([low, high], axis=1), longest)
