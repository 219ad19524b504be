"""Reads the images and categories of a COCO JSON file."""

from collections import Counter
from pathlib import Path

import numpy as np

from segjax.coco.ids import Id, id_key, id_order, own_id

_LONGEST = 10**6  # pixels; a larger "size" would make all objects look flat


def keys_of(path: Path, content: list[dict], kind: str) -> list[Id]:
    """The keys of the ids of all categories or images, which must differ.

    Raises:
      ValueError: an id is missing, is no id or occurs twice.
    """
    plural = {"category": "categories", "image": "images"}[kind]
    keys: dict[Id, None] = {}
    for entry in content:
        if not isinstance(entry, dict) or "id" not in entry:
            raise ValueError(f"{path}: {plural} need an id, found {entry!r:.60}")
        try:
            key = id_key(entry["id"])
        except ValueError as error:
            raise ValueError(f"{path}: {kind} id {error}") from error
        if key in keys:
            ending = "the same id" if kind == "category" else "the id"
            raise ValueError(f"{path}: two {plural} have {ending} {key!r:.40}")
        keys[key] = None
    return list(keys)


def read_images(
    path: Path, content: list[dict]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, list[str]]:
    """Returns the ids, file names, sizes (H, W; 0 if unknown) and notes, ordered by id."""
    keys = keys_of(path, content, "image")
    order = sorted(range(len(keys)), key=lambda place: id_order(keys[place]))
    names, sizes = [], []
    for place in order:
        image = content[place]
        name = image.get("file_name")
        if name in (None, ""):
            raise ValueError(f"{path}: image {image['id']!r:.40} has no file_name")
        if not isinstance(name, str):
            raise ValueError(
                f"{path}: image {image['id']!r:.40} has file_name {name!r:.40}; expected a text"
            )
        height, width = _read_side(image.get("height")), _read_side(image.get("width"))
        if height is None or width is None:
            raise ValueError(
                f"{path}: image {image['id']!r:.40} has height {image.get('height')!r:.20}, width "
                f"{image.get('width')!r:.20}; expected whole numbers of pixels"
            )
        names.append(name)
        sizes.append([height, width] if min(height, width) > 0 else [0, 0])
    own = [own_id(content[place]["id"]) for place in order]
    small = all(isinstance(number, int) and abs(number) < 2**63 for number in own)
    ids = np.array(own, np.int64) if small else np.array(own, object)
    odd = sum(type(content[place]["id"]) is not int for place in order)
    notes = [f"{odd} of {len(own)} images have ids as text or fractions"] if odd else []
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        notes.append(
            f"{len(repeated)} files are listed as several images, such as {repeated[0]!r:.80}: "
            "each image has its own objects alone"
        )
    return ids, tuple(names), np.array(sizes, np.int32).reshape(-1, 2), notes


def _read_side(value) -> int | None:
    """A height or width: 0 if it is missing, None if it is no whole number of pixels."""
    if value is None or value == "":
        return 0
    try:
        side = id_key(value)
    except ValueError:
        return None
    return max(side, 0) if isinstance(side, int) and side <= _LONGEST else None


def choose_categories(
    path: Path, content: list[dict], keys: list[Id], counts: np.ndarray
) -> tuple[dict[Id, str], np.ndarray, list[str]]:
    """Leaves out categories that nothing is annotated with and that cannot be classes.

    Returns:
      Names by id, ascending; the places of the kept categories in the file; notes.
    """
    names = []
    for category in content:
        name = category.get("name")
        if not isinstance(name, str | int | float) or not str(name).strip():
            raise ValueError(f"{path}: categories need an id and a name, found {category!r:.60}")
        names.append(str(name))
    order = sorted(range(len(keys)), key=lambda place: id_order(keys[place]))
    places, notes = [], []
    for place in order:
        name, number = names[place], content[place]["id"]
        same = [other for other in order if names[other] == name]
        annotated = [other for other in same if counts[other]]
        if name.casefold() == "background" and counts[place]:
            raise ValueError(
                f"{path}: category {number!r} is named {name!r}, which stands for pixels of no "
                f"object, and {counts[place]} annotations have it; rename the category"
            )
        if len(annotated) > 1:
            ids = " and ".join(repr(content[other]["id"]) for other in annotated[:2])
            raise ValueError(f"{path}: two categories have the name {name!r}: {ids}; rename one")
        if name.casefold() == "background" or place != (annotated or same)[0]:
            notes.append(f"category {number!r}, {name!r}, left out: nothing is annotated with it")
        else:
            places.append(place)
    categories = {own_id(content[place]["id"]): names[place] for place in places}
    return categories, np.array(places, np.intp), notes
