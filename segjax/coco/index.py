"""An index of a COCO JSON file: where each image's annotations lie in it.

COCO's own file of 860,000 annotations takes 3 GB as Python objects. The index parses each
annotation once, checks it and keeps only its place in the file (12 bytes). Reading an image then
parses that image's annotations alone, in any process.
"""

import json
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The images of a COCO file, ordered by id, and the places of their usable annotations.

    Attributes:
      path: the JSON file.
      categories: category names by id, ascending.
      image_ids: int64 [n], ascending.
      file_names: file name of each image.
      sizes: height and width of each image, int32 [n, 2].
      first: image i has annotations first[i] to first[i + 1] − 1, int64 [n + 1].
      starts: each annotation's first byte in the file, int64 [m].
      lengths: each annotation's length in bytes, int32 [m].
      crowd: whether each annotation is a crowd, bool [m].
      notes: sentences that say how many annotations were left out, and why.
    """

    path: Path
    categories: dict[int, str]
    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    crowd: np.ndarray
    notes: tuple[str, ...]

    def annotations(self, image: int) -> list[dict]:
        """Parses the annotations of the image at an index, in the order of the file.

        Raises:
          ValueError: the file has changed since it was indexed.
        """
        found = []
        with self.path.open("rb") as file:
            for place in range(self.first[image], self.first[image + 1]):
                file.seek(self.starts[place])
                try:
                    annotation = json.loads(file.read(self.lengths[place]))
                except ValueError:
                    annotation = None
                if not isinstance(annotation, dict) or (
                    annotation.get("image_id") != self.image_ids[image]
                ):
                    raise ValueError(f"{self.path}: changed since it was opened")
                found.append(annotation)
        return found


def read_coco_index(path: Path) -> CocoIndex:
    """Indexes a JSON file in COCO's format ("images", "annotations" and "categories").

    Annotations are left out if they have no mask, or no width or height within the image. The notes
    count them.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not in COCO's format; the message names the image or annotation.
    """
    # Latin-1 has one character per byte, so that places in the text are places in the file. It
    # garbles only characters beyond ASCII, which annotations do not have.
    text = path.read_bytes().decode("latin-1")
    annotations = _Annotations(path)
    try:
        parts = _read_parts(text, annotations.add)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    missing = [part for part in _PARTS if part not in parts]
    if missing:
        raise ValueError(
            f"{path}: not in COCO's format: expected lists named {', '.join(_PARTS)}; missing: "
            f"{', '.join(missing)}"
        )
    categories = _read_categories(path, parts["categories"])
    image_ids, file_names, sizes = _read_images(path, parts["images"])
    image = annotations.places_of(image_ids, "image")
    annotations.places_of(np.array(list(categories), np.int64), "category")

    box = np.array(annotations.boxes).reshape(-1, 4)
    limit = sizes[image][:, ::-1]
    extent = np.minimum(box[:, :2] + box[:, 2:], limit) - np.maximum(box[:, :2], 0)
    flat = ~(extent > 0).all(axis=1)
    no_mask = np.array(annotations.no_mask, bool) & ~flat
    notes = tuple(
        f"{np.count_nonzero(left_out)} of {len(box)} annotations left out: {reason}"
        for left_out, reason in (
            (flat, "no width or height within the image"),
            (no_mask, "no segmentation"),
        )
        if left_out.any()
    )
    if len(box) and not np.any(~flat & ~no_mask):
        raise ValueError(f"{path}: no annotation is usable. {'; '.join(notes)}")
    kept = np.flatnonzero(~flat & ~no_mask)
    kept = kept[np.argsort(image[kept], kind="stable")]
    return CocoIndex(
        path=path,
        categories=categories,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        first=np.searchsorted(image[kept], np.arange(len(image_ids) + 1)),
        starts=np.array(annotations.starts, np.int64)[kept],
        lengths=np.array(annotations.lengths, np.int32)[kept],
        crowd=np.array(annotations.crowd, bool)[kept],
        notes=notes,
    )


class _Annotations:
    """Collects the needed entries of all annotations in packed arrays."""

    def __init__(self, path: Path):
        self.path = path
        self.ids = {"image": array("q"), "category": array("q")}
        self.starts, self.lengths = array("q"), array("i")
        self.boxes = array("d")
        self.crowd, self.no_mask = array("b"), array("b")

    def add(self, annotation: dict, start: int, end: int) -> None:
        try:
            x, y, width, height = annotation["bbox"]
            self.boxes.extend((x, y, width, height))
            self.ids["image"].append(annotation["image_id"])
            self.ids["category"].append(annotation["category_id"])
            self.crowd.append(bool(annotation.get("iscrowd", 0)))
        except (KeyError, TypeError, ValueError) as error:
            number = annotation.get("id") if isinstance(annotation, dict) else annotation
            raise ValueError(
                f"{self.path}: annotation {number!r:.60}: expected image_id and category_id, "
                f"integers, and bbox [x, y, width, height] ({error!r})"
            ) from error
        self.no_mask.append(not has_mask(annotation.get("segmentation")))
        self.starts.append(start)
        self.lengths.append(end - start)

    def places_of(self, known: np.ndarray, kind: str) -> np.ndarray:
        """Finds each annotation's image or category among the known ids, which are ascending."""
        ids = np.array(self.ids[kind], np.int64)
        places = np.searchsorted(known, ids)
        unknown = np.flatnonzero(np.append(known, -1)[places] != ids)
        if unknown.size:
            raise ValueError(
                f"{self.path}: {len(unknown)} annotations name a {kind}_id that the file does not "
                f"define, the first {ids[unknown[0]]}"
            )
        return places


def has_mask(segmentation: list | dict | None) -> bool:
    """Returns whether a "segmentation" has run lengths or a polygon of at least three corners."""
    if isinstance(segmentation, dict):
        return True
    return any(len(polygon) >= 6 for polygon in segmentation or ())


def _read_parts(text: str, visit: Callable[[dict, int, int], None]) -> dict[str, list]:
    """Parses the top-level object; passes each element of "annotations" to `visit`."""
    parts = {}
    position = _after(text, 0, "{")
    while text[position : position + 1] != "}":
        key, end = _DECODER.raw_decode(text, position)
        if not isinstance(key, str):
            raise json.JSONDecodeError("Expecting a name in quotes", text, position)
        position = _after(text, end, ":")
        if key == "annotations" and text[position : position + 1] == "[":
            parts[key] = []
            position = _visit_elements(text, position, visit)
        else:
            value, end = _DECODER.raw_decode(text, position)
            if key in _PARTS and isinstance(value, list):
                ours = text[position:end]
                parts[key] = value if ours.isascii() else json.loads(ours.encode("latin-1"))
            position = _skip_space(text, end)
        if text[position : position + 1] != "}":
            position = _after(text, position, ",")
    return parts


def _visit_elements(text: str, position: int, visit: Callable) -> int:
    """Calls `visit(element, start, end)` along a list; returns the position after the list."""
    position = _after(text, position, "[")
    while text[position : position + 1] != "]":
        value, end = _DECODER.raw_decode(text, position)
        visit(value, position, end)
        position = _skip_space(text, end)
        if text[position : position + 1] != "]":
            position = _after(text, position, ",")
    return _after(text, position, "]")


def _after(text: str, position: int, sign: str) -> int:
    """Returns the position after `sign`, which must come next, and after the space behind it."""
    position = _skip_space(text, position)
    if text[position : position + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, position)
    return _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern also matches no space
    return match.end()


def _read_categories(path: Path, content: list[dict]) -> dict[int, str]:
    try:
        categories = {int(category["id"]): str(category["name"]) for category in content}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: categories need an integer id and a name ({error!r})") from error
    if len(categories) != len(content):
        raise ValueError(f"{path}: two categories have the same id")
    return dict(sorted(categories.items()))


def _read_images(path: Path, content: list[dict]) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Returns the ids, file names and sizes (H, W) of the images, ordered by id."""
    images = []
    for image in content:
        try:
            size = int(image["height"]), int(image["width"])
            images.append((int(image["id"]), str(image["file_name"]), size))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: image {image!r:.60}: expected integers id, height and width, and "
                f"file_name ({error!r})"
            ) from error
        if min(size) < 1:
            raise ValueError(f"{path}: image {image['id']} has height {size[0]}, width {size[1]}")
    images.sort()
    ids = np.array([number for number, _, _ in images], np.int64)
    if (np.diff(ids) == 0).any():
        twice = ids[np.flatnonzero(np.diff(ids) == 0)[0]]
        raise ValueError(f"{path}: two images have the id {twice}")
    sizes = np.array([size for _, _, size in images], np.int32).reshape(-1, 2)
    return ids, tuple(name for _, name, _ in images), sizes
