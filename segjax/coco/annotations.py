"""One annotation of a COCO file, read as the tools that write them mean it.

Tools leave out entries, write numbers as text and nest polygons in other ways. Where the meaning is
plain, it is read, and the annotation's `oddities` name the deviation; anything else is an error.
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from segjax.coco import run_lengths as rle
from segjax.coco.ids import Id, id_key

# Text after "N of M annotations" for each oddity.
ODDITIES = {
    "ids": "have ids as text or fractions: read as numbers where they are",
    "bbox": "have no bbox: taken from the segmentation",
    "area": "have no area: the pixels of the mask count, or the box without one",
    "iscrowd": "have no iscrowd: read as 0",
    "iscrowd text": "have iscrowd as text: read as a number",
    "flat": "have one list of numbers as segmentation: read as one polygon",
    "pairs": "have corners as [x, y] pairs: read as polygons",
    "empty": "have run lengths without a pixel: an empty mask",
    "short": "have polygons of fewer than three corners, which enclose nothing: left out",
    "corners": "have a bbox that looks like [x_min, y_min, x_max, y_max] instead of [x, y, width, "
    "height]",
    "apart": "have a bbox that does not fit their mask (the mask's own box has an IoU below 0.5)",
}
CONTRADICTIONS = ("corners", "apart")  # refused where most annotations have them
_FLAGS = {"": False, "0": False, "false": False, "1": True, "true": True}
_CLOSE = 2.0  # pixels by which a box may differ from the outline of its mask
FARTHEST = 1e6  # pixels; the outline of a polygon that reaches farther would take gigabytes
# JSON has no NaN, but pandas writes it for missing values. Infinity is read as missing, too.
DECODER = json.JSONDecoder(parse_constant=lambda name: None)


class Annotation(NamedTuple):
    """An annotation in COCO's own form.

    Attributes:
      image, category: the keys of their ids; see `segjax.coco.ids.id_key`.
      box: [x, y, width, height] in pixels; None without a box and a mask.
      segmentation: polygons, run lengths, or None without a mask.
      crowd: whether it is a group that nobody told apart.
      area: in pixels; None if the file has none.
      oddities: keys of `ODDITIES`.
    """

    image: Id
    category: Id
    box: tuple[float, float, float, float] | None
    segmentation: list[list[float]] | dict | None
    crowd: bool
    area: float | None
    oddities: tuple[str, ...]


def read_annotation(entry) -> Annotation:
    """Reads one element of "annotations".

    Raises:
      ValueError: an entry is missing or has another meaning; the message names the annotation.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"annotation {entry!r:.60}: expected image_id, category_id and bbox")
    try:
        return _read(entry)
    except ValueError as error:
        raise ValueError(f"annotation {entry.get('id')!r:.60}: {error}") from error


def _read(entry: Mapping) -> Annotation:
    oddities = []
    image, category = _id_of(entry, "image_id"), _id_of(entry, "category_id")
    if any(type(entry[name]) is not int for name in ("image_id", "category_id")):
        oddities.append("ids")
    segmentation, form = read_segmentation(entry.get("segmentation"))
    outline = outline_of(segmentation)
    if outline is None and segmentation is not None:
        oddities.append("empty")
    if outline is not None and max(map(abs, outline)) > FARTHEST:
        reach = ", ".join(f"{number:g}" for number in outline)
        raise ValueError(f"segmentation reaches over [{reach}]; expected coordinates in pixels")
    box = entry.get("bbox")
    if _is_missing(box):
        box = None if outline is None else _from_corners(outline)
        oddities.append("bbox")
    else:
        box = _read_box(box)
        if outline is not None and (contradiction := _contradiction(box, outline)):
            oddities.append(contradiction)
    crowd = entry.get("iscrowd")
    if crowd is None:
        oddities.append("iscrowd")
    elif isinstance(crowd, str):
        oddities.append("iscrowd text")
    area = _read_area(entry.get("area"))
    if area is None:
        oddities.append("area")
    if form:
        oddities.append(form)
    is_crowd = read_crowd(crowd)
    return Annotation(image, category, box, segmentation, is_crowd, area, tuple(oddities))


def read_crowd(value) -> bool:
    """Returns what an "iscrowd" means: missing and 0 are False, also as text; 1 is True.

    Raises:
      ValueError: it means neither.
    """
    if value is None:
        return False
    if isinstance(value, str) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    if isinstance(value, bool | int | float) and value >= 0:
        return bool(value)
    raise ValueError(f"iscrowd is {value!r:.40}; expected 0 or 1")


def read_segmentation(value) -> tuple[list[list[float]] | dict | None, str]:
    """Returns a "segmentation" as polygons or run lengths, and the oddity of its form or "".

    Polygons with fewer than three corners enclose nothing and are left out.

    Raises:
      ValueError: it has another form.
    """
    if _is_missing(value) or value == {}:
        return None, ""
    if isinstance(value, dict):
        return _read_run_lengths(value), ""
    if not isinstance(value, list | tuple):
        raise ValueError(f"segmentation is {value!r:.40}; expected polygons or run lengths")
    form = ""
    if not isinstance(value[0], list | tuple):
        value, form = [value], "flat"
    elif len(value) >= 3 and all(_is_pair(corner) for corner in value):
        value, form = [[number for corner in value for number in corner]], "pairs"
    polygons = []
    for polygon in value:
        if isinstance(polygon, list | tuple) and polygon and all(map(_is_pair, polygon)):
            polygon, form = [number for corner in polygon for number in corner], "pairs"
        if not _are_numbers(polygon):
            raise ValueError(
                f"segmentation has the polygon {polygon!r:.60}; expected finite numbers "
                "[x0, y0, x1, y1, ...]"
            )
        if len(polygon) % 2:
            raise ValueError(
                f"segmentation has a polygon of {len(polygon)} numbers; expected [x0, y0, x1, y1, "
                "...], an even number"
            )
        if len(polygon) >= 6:
            polygons.append(list(polygon))
    if len(polygons) < len(value):
        form = "short"
    return polygons or None, form


def outline_of(segmentation) -> tuple[float, float, float, float] | None:
    """Returns the tight box [x_min, y_min, x_max, y_max] of polygons or run lengths.

    None stands for no mask and for an empty one.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        return _outline_of_runs(segmentation)
    x = [number for polygon in segmentation for number in polygon[0::2]]
    y = [number for polygon in segmentation for number in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def _id_of(entry: Mapping, name: str) -> Id:
    if name not in entry:
        raise ValueError(f"expected image_id and category_id, found no {name}")
    try:
        return id_key(entry[name])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _is_missing(value) -> bool:
    return value is None or value == [] or value == ""


def _is_pair(value) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _are_numbers(values) -> bool:
    """Whether these are finite numbers; fast, as it runs for each polygon."""
    if not isinstance(values, list | tuple) or not {int, float}.issuperset(map(type, values)):
        return False
    try:
        return math.isfinite(sum(values))
    except OverflowError:
        return False


def _read_box(value) -> tuple[float, float, float, float]:
    if not _are_numbers(value) or len(value) != 4:
        raise ValueError(
            f"bbox is {value!r:.60}; expected four finite numbers [x, y, width, height]"
        )
    x, y, width, height = map(float, value)
    return x, y, width, height


def _read_area(value) -> float | None:
    if _is_missing(value):
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        area = float(value)
        if not math.isfinite(area):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"area is {value!r:.40}; expected a number") from error
    return area


def _contradiction(box, outline) -> str:
    """Returns the oddity of a box that does not fit the outline of its mask, or "".

    It is "corners" for a box that fits as two corners instead of a corner and a size. A box without
    an extent is left out for that reason.
    """
    x, y, width, height = box
    if min(width, height) <= 0:
        return ""
    corners = x, y, x + width, y + height
    if _are_close(corners, outline):
        return ""
    if _are_close(box, outline):
        return "corners"
    left, top, right, bottom = outline
    shared_width = min(corners[2], right) - max(x, left)
    shared_height = min(corners[3], bottom) - max(y, top)
    shared = max(shared_width, 0) * max(shared_height, 0)
    union = width * height + (right - left) * (bottom - top) - shared
    return "apart" if shared < 0.5 * union else ""


def _are_close(a, b) -> bool:
    return all(abs(first - second) <= _CLOSE for first, second in zip(a, b, strict=True))


def _from_corners(corners) -> tuple[float, float, float, float]:
    left, top, right, bottom = map(float, corners)
    return left, top, right - left, bottom - top


def _read_run_lengths(value: dict) -> dict:
    size = value.get("size")
    if size is None or not _are_numbers(size) or len(size) != 2 or "counts" not in value:
        raise ValueError(
            f"segmentation is {value!r:.60}; expected run lengths with counts and size "
            "[height, width]"
        )
    if any(side < 1 or side > FARTHEST or side != int(side) for side in size):
        raise ValueError(
            f"segmentation has run lengths for {size!r:.60}; expected [height, width] in pixels"
        )
    value = {"size": [int(side) for side in size], "counts": value["counts"]}
    rle.area(value)  # refuses wrong counts
    return value


def _outline_of_runs(value: dict) -> tuple[float, float, float, float] | None:
    height = value["size"][0]
    counts = value["counts"]
    lengths = rle.decompress(counts) if isinstance(counts, str | bytes) else np.asarray(counts)
    ends = np.cumsum(lengths)
    starts, ends = (ends - lengths)[1::2], ends[1::2] - 1
    starts, ends = starts[ends >= starts], ends[ends >= starts]
    if not len(starts):
        return None
    within = starts // height == ends // height  # one column
    top = np.where(within, starts % height, 0).min()
    bottom = np.where(within, ends % height, height - 1).max() + 1
    return int(starts[0] // height), int(top), int(ends[-1] // height) + 1, int(bottom)
