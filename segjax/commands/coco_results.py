"""Detections as COCO's result files, with the ids of the data set that they belong to."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segjax.coco.ids import Id, ResultIds, id_key
from segjax.commands.errors import UserError
from segjax.data.orientation import Orientation, explain_size
from segjax.files.atomic import write_json
from segjax.messages.lists import few

if TYPE_CHECKING:
    from segjax.coco.index import ImageList

NAMES_SHOWN = 5


def match_images(
    files: Sequence[tuple[Path, int, tuple[int, int]]],
    listing: "ImageList",
    *,
    orientation: Orientation = "upright",
) -> list[Id]:
    """Finds the ids of image files in an annotation file, by their names.

    Folders count only where several images of the annotation file have the same name.

    Args:
      files: path, number of pages and size (height, width) of each image file.
      listing: the images of the annotation file.
      orientation: how the image files are read.

    Raises:
      UserError: an image is not in the annotation file, is in it more than once, or has another
        size there.
    """
    parts = [tuple(name.replace("\\", "/").split("/")) for name in listing.file_names]
    places_of: dict[str, list[int]] = {}
    for place, names in enumerate(parts):
        places_of.setdefault(names[-1], []).append(place)
    ids, missing = [], []
    for path, pages, size in files:
        places = places_of.get(path.name, [])
        if len(places) > 1:
            whole = path.resolve().parts
            places = [p for p in places if whole[-len(parts[p]) :] == parts[p]]
            if len(places) != 1:
                raise UserError(f"{path}: {listing.path} has several images of this name")
        if not places:
            missing.append(str(path))
            continue
        place = places[0]
        if pages > 1:
            raise UserError(
                f"{path}: {pages} pages cannot all have the id {listing.image_ids[place]} of "
                f"{listing.path}; save them as files of their own"
            )
        listed = tuple(listing.sizes[place].tolist())
        if 0 not in listed and listed != size:
            reason = explain_size(
                path, size, listed, orientation=orientation, setting="--orientation"
            )
            raise UserError(
                f"{path}: height and width {size}, but {listing.path} says {listed}"
                + (reason or ": another image, or one of another size")
            )
        ids.append(listing.image_ids[place])
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} images are not in {listing.path}: "
            f"{few(missing, most=NAMES_SHOWN)}; predict the others, or leave --annotations out"
        )
    twice = [number for number, count in Counter(map(id_key, ids)).items() if count > 1]
    if twice:
        raise UserError(f"several files are the image {twice[0]!r} of {listing.path}")
    return ids


def describe_categories(ids: ResultIds, *, own: Sequence[Id] | None, listed: Path | None) -> str:
    """Returns a line that says where the category ids of results come from."""
    if listed is not None and not ids.listed:
        origin = "the training data's" if own else "made up in the order of the classes"
        return f"category ids: {origin}, because {listed} lists no class of the model"
    if len(ids.made_up) == len(ids.ids):
        return (
            f"category ids: 1 to {len(ids.ids)}, made up in the order of the classes; "
            "--annotations FILE takes a data set's own"
        )
    origin = f"those of {listed}, by name" if listed is not None else "the training data's"
    if not ids.made_up:
        return f"category ids: {origin}"
    shown = ", ".join(ids.made_up[:NAMES_SHOWN]) + " ..." * bool(ids.made_up[NAMES_SHOWN:])
    return f"category ids: {origin}; made up for classes that it does not list: {shown}"


def describe_capacity(counts: Sequence[int], most: float) -> list[str]:
    """Returns a line if images have as many detections as the model finds at most."""
    full = sum(count >= most for count in counts)
    if not full:
        return []
    return [
        f"{full} of {len(counts)} images have {most} detections, the most that the model finds "
        "(network.detections.max_detections): they may hold more objects"
    ]


def write_results(evaluator, source, task, *, split: str, folder: Path) -> list[str]:
    """Writes the detections of an evaluation beside its scores, in COCO's result format.

    `detections/<split>.json` is the list of results, with the ids of the split's own data.
    `detections/<split>_images.json` says which image and category each id is.

    Args:
      evaluator: the evaluator of the whole split.
      source: the examples of the split.
      task: the task whose predictions were scored.
      split: the name of the split.
      folder: the folder of the scores.

    Returns:
      Lines that tell people what there is now; none if the task detects no objects.
    """
    if not hasattr(evaluator, "detections"):
        return []
    ids = getattr(source, "category_ids", None) or getattr(task, "category_ids", None)
    ids = tuple(ids or range(1, len(task.classes)))
    rows = evaluator.detections(ids)
    path = write_json(folder / "detections" / f"{split}.json", rows, indent=None)
    images = evaluator.ground_truth()["images"]
    categories = [
        {"id": number, "name": name} for number, name in zip(ids, task.classes[1:], strict=True)
    ]
    table = {"images": images, "categories": categories}
    write_json(folder / "detections" / f"{split}_images.json", table, indent=None)
    made_up = "" if evaluator.has_image_ids else "; image ids made up in the order of the names"
    found = Counter(row["image_id"] for row in rows)
    counts = [found[image["id"]] for image in images]
    return [
        f"results   {path}  (COCO's result format: {len(rows)} detections{made_up})",
        *describe_capacity(counts, task.most_detections),
    ]
