"""Reads ground truth and results for COCO's scores: accepts and refuses what pycocotools does.

pycocotools refuses by whatever error its code runs into; here the message names the row and what
was expected. Deliberate differences:

- An empty list of results is no error: nothing was found.
- Polygons that reach beyond a million pixels are refused: their outlines take gigabytes.
- Numbers that are NaN, run lengths that are none or do not fill their size, and masks of another
  size than their image are refused. pycocotools counts them as something else without a word.
- Ids of annotations are not read. pycocotools takes an object of id 0 for none, and one of two
  objects with the same id for both.
- "iscrowd" of "0" is 0. pycocotools takes any text for a crowd.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_masks

from segjax.coco import run_lengths as rle
from segjax.coco.annotations import FARTHEST, read_crowd
from segjax.evaluation.coco_numbers import (
    finite_number,
    finite_numbers,
    image_side,
    is_number,
    listed,
    require_keys,
    score_of,
)


@dataclass(frozen=True)
class Truth:
    """A ground truth with images and categories numbered from 1 in the order of their ids.

    Attributes:
      images: number of each image, by its id.
      sizes: (height, width) of each image, by its number, as in the file; None where missing.
      categories: number of each category, by its id.
      names: a different name for each category, by its number.
      annotations: the objects of known images and categories, in COCO's format.
    """

    images: dict[Any, int]
    sizes: dict[int, tuple[Any, Any]]
    categories: dict[Any, int]
    names: dict[int, str]
    annotations: list[dict]

    def size(self, number: int, row: str) -> list[int]:
        """The height and width of an image with masks.

        Raises:
          ValueError: it has none.
        """
        size = self.sizes[number]
        if not all(is_number(side) and side >= 1 and int(side) == side for side in size):
            raise ValueError(f"{row}: its image has height and width {size}; masks need them")
        return [int(side) for side in size]

    def dataset(self, rows: list[dict]) -> dict:
        """The content of a file in COCO's format with these annotations."""
        return {
            "images": [
                {"id": number, "height": image_side(height), "width": image_side(width)}
                for number, (height, width) in self.sizes.items()
            ],
            "categories": [{"id": number, "name": name} for number, name in self.names.items()],
            "annotations": rows,
        }


def read_content(source, name: str):
    """Returns a name for errors, and the content of a JSON file or of an object.

    Raises:
      ValueError: the file cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return name, source
    try:
        return str(source), json.loads(Path(source).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {name} from {source}: {error}") from error


def read_truth(truth, source: str, iou_type: str) -> Truth:
    """Reads what counting needs of a ground truth; annotations of unknown ids are left out.

    Raises:
      ValueError: it is not in COCO's format.
    """
    if not isinstance(truth, Mapping):
        raise ValueError(f"{source}: expected COCO's format, a dict, found {type(truth).__name__}")
    for name in ("images", "categories", "annotations"):
        missing = name not in truth and name != "annotations"
        if missing or not isinstance(truth.get(name, []), Sequence):
            raise ValueError(f'{source}: expected COCO\'s format, with a list "{name}"')
    images, sizes = _numbered(truth["images"], f"{source}: image")
    categories, rows = _numbered(truth["categories"], f"{source}: category")
    image_sizes = {
        number: (image.get("height"), image.get("width")) for number, image in sizes.items()
    }
    names = {number: str(row.get("name", row["id"])) for number, row in rows.items()}
    often = Counter(names.values())
    names = {
        number: f"{name} ({rows[number]['id']})" if often[name] > 1 else name
        for number, name in names.items()
    }
    result = Truth(images, image_sizes, categories, names, [])
    for place, row in enumerate(truth.get("annotations", ())):
        name = f"{source}: annotation {place}"
        require_keys(row, ("image_id", "category_id", "id"), name)
        image, category = (
            _number_of(row[key], known, f"{name}: {key}")
            for key, known in (("image_id", images), ("category_id", categories))
        )
        if image is None or category is None:
            continue
        require_keys(row, ("area", "iscrowd", _KEYS[iou_type]), name)
        if row["iscrowd"] in (None, ""):
            raise ValueError(f"{name}: iscrowd is {row['iscrowd']!r}; expected 0 or 1")
        try:
            crowd = int(read_crowd(row["iscrowd"]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        entry = {
            "id": len(result.annotations) + 1,
            "image_id": image,
            "category_id": category,
            "area": finite_number(row["area"], f"{name}: area"),
            "iscrowd": crowd,
        }
        if iou_type == "bbox":
            entry["bbox"] = _box(row["bbox"], name, texts=True)
        else:
            entry["segmentation"] = _mask(row["segmentation"], result.size(image, name), name)
        result.annotations.append(entry)
    return result


def read_detections(found, source: str, truth: Truth, iou_type: str) -> list[dict]:
    """Reads what counting needs of results; those of unknown categories are left out.

    Raises:
      ValueError: they are not in COCO's result format, or of unknown images.
    """
    if isinstance(found, np.ndarray):
        found = _rows_of_array(found, source)
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        kind = type(found).__name__
        raise ValueError(f"{source}: expected COCO's result format, a list, found {kind}")
    if not found:
        return []
    for place, row in enumerate(found):
        name = f"{source}: detection {place}"
        require_keys(row, ("image_id", "category_id"), name)
        if _number_of(row["image_id"], truth.images, f"{name}: image_id") is None:
            raise ValueError(
                f"{name} has image_id {row['image_id']!r:.40}, which is not in the ground truth"
            )
    # The first row decides what all must have, and whether a size is that of a box or of a mask.
    first = found[0]
    has_boxes = "bbox" in first and first["bbox"] not in ([], ())
    if "caption" in first or not (has_boxes or "segmentation" in first):
        raise ValueError(f"{source}: detection 0 has no {_KEYS[iou_type]!r}")
    rows = []
    for place, row in enumerate(found):
        name = f"{source}: detection {place}"
        entry = {
            "image_id": truth.images[row["image_id"]],
            "category_id": _number_of(row["category_id"], truth.categories, f"{name}: category_id"),
            "iscrowd": 0,
        }
        if has_boxes:
            require_keys(row, ("bbox",), name)
            box = _box(row["bbox"], name, more=iou_type == "segm")
            entry |= {"area": box[2] * box[3], "bbox": box}
        else:
            require_keys(row, ("segmentation",), name)
            entry["segmentation"] = _compressed(row["segmentation"], name)
        if entry["category_id"] is None:
            continue
        require_keys(row, ("score",), name)
        entry["score"] = score_of(row["score"], name)
        if iou_type == "segm":
            size = truth.size(entry["image_id"], name)
            if has_boxes and "segmentation" not in row:
                x, y, width, height = box
                corners = [x, y, x, y + height, x + width, y + height, x + width, y]
                entry["segmentation"] = [corners]
            else:
                entry["segmentation"] = _mask(row["segmentation"], size, name)
        elif not has_boxes and "bbox" in row:
            entry["bbox"] = _box(row["bbox"], name)
        entry["id"] = len(rows) + 1
        rows.append(entry)
    if not has_boxes and rows:
        masks = [row["segmentation"] for row in rows]
        for row, area, box in zip(
            rows, coco_masks.area(masks), coco_masks.toBbox(masks), strict=True
        ):
            row["area"] = float(area)
            row.setdefault("bbox", [float(number) for number in box])
    return rows


_KEYS = {"bbox": "bbox", "segm": "segmentation"}


def _numbered(rows: Sequence, name: str) -> tuple[dict[Any, int], dict[int, Mapping]]:
    """Numbers ids from 1 in their order: numbers by id, and rows by number."""
    by_id = {}
    for place, row in enumerate(rows):
        require_keys(row, ("id",), f"{name} {place}")
        try:
            by_id[row["id"]] = row  # of equal ids, pycocotools takes the last
        except TypeError as error:
            raise ValueError(f"{name} {place}: {row['id']!r:.40} is no id") from error
    try:
        ids = sorted(by_id)
    except TypeError as error:
        raise ValueError(f"{name}: some ids are numbers and some are not") from error
    numbers_of = {own: number for number, own in enumerate(ids, start=1)}
    return numbers_of, {number: by_id[own] for own, number in numbers_of.items()}


def _number_of(own, known: dict[Any, int], name: str) -> int | None:
    try:
        return known.get(own)
    except TypeError as error:
        raise ValueError(f"{name} {own!r:.40} is no id") from error


def _rows_of_array(found: np.ndarray, source: str) -> list[dict]:
    """Rows of an array [n, 7]: image id, x, y, width, height, score, category id."""
    if found.ndim != 2 or found.shape[1] != 7:
        raise ValueError(f"{source}: expected an array [n, 7], found {found.shape}")
    if found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise ValueError(f"{source}: expected an array of finite numbers, found {found!r:.80}")
    return [
        {"image_id": int(image), "bbox": box, "score": score, "category_id": int(category)}
        for image, *box, score, category in found.tolist()
    ]


def _mask(value, size: list[int], name: str) -> list | dict:
    """Polygons or compressed run lengths, for an image of a size."""
    if isinstance(value, Mapping):
        if not isinstance(value.get("counts"), Sequence) or "size" not in value:
            raise ValueError(
                f"{name}: expected run lengths with counts and size, found {value!r:.40}"
            )
        if list(listed(value["size"])) != size:
            raise ValueError(
                f"{name}: its mask is for an image of {value['size']}, and the image has "
                f"(height, width) {size}"
            )
        if isinstance(value["counts"], str | bytes):
            return _compressed(value, name)
        counts = [int(x) if isinstance(x, float) and x.is_integer() else x for x in value["counts"]]
        try:
            lengths = rle.lengths_of({"size": size, "counts": counts})
            return {"size": size, "counts": rle.compress(lengths)}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    polygons = listed(value)
    # pycocotools takes four numbers for a box, and then fails.
    if not polygons or len(listed(polygons[0])) < 5:
        raise ValueError(
            f"{name}: expected polygons [[x0, y0, x1, y1, ...], ...] or run lengths, found "
            f"{value!r:.40}"
        )
    polygons = [finite_numbers(polygon, f"{name}: segmentation") for polygon in polygons]
    if max(abs(number) for polygon in polygons for number in polygon) > FARTHEST:
        raise ValueError(f"{name}: segmentation reaches beyond {FARTHEST:g} pixels: {value!r:.40}")
    # An odd number at the end counts for nothing, and two corners enclose nothing.
    polygons = [polygon[: len(polygon) // 2 * 2] for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return rle.encode(np.zeros(size, bool))
    return polygons


def _compressed(value, name: str) -> dict:
    """Compressed run lengths, as results hold them."""
    counts = value.get("counts") if isinstance(value, Mapping) else None
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str) or (counts and not "0" <= min(counts) <= max(counts) <= "o"):
        raise ValueError(f"{name}: expected a mask as compressed run lengths, found {value!r:.40}")
    size = listed(value.get("size"))
    if len(size) != 2 or not all(is_number(side) and side >= 0 for side in size):
        raise ValueError(f"{name}: expected run lengths with size [height, width]")
    return {"size": [int(side) for side in size], "counts": counts}


def _box(value, name: str, *, texts: bool = False, more: bool = False) -> list[float]:
    """A box [x, y, width, height].

    Args:
      value: the box.
      name: the row, for errors.
      texts: accept numbers as text.
      more: accept and ignore further numbers.
    """
    box = listed(value)
    if len(box) < 4 or (len(box) > 4 and not more):
        raise ValueError(f"{name}: expected [x, y, width, height], found {value!r:.40}")
    if not texts and any(not is_number(number) for number in box[:4]):
        raise ValueError(f"{name}: expected numbers [x, y, width, height], found {value!r:.40}")
    return finite_numbers(box[:4], f"{name}: bbox")
