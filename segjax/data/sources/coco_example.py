"""One image of a JSON file in COCO's format, with its objects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.coco.annotations import Annotation
from segjax.coco.ids import id_key
from segjax.coco.index import CocoIndex
from segjax.data.images import match_channels, read_image
from segjax.data.instance_masks import CroppedMask, crop_mask, mask_from_segmentation
from segjax.data.orientation import Orientation, explain_size


def read_coco_example(
    index: CocoIndex,
    place: int,
    images: Path,
    *,
    classes: Sequence[str] | None = None,
    orientation: Orientation = "upright",
    setting: str | None = None,
    for_scores: bool = False,
) -> dict:
    """Reads one image of an index and its objects: an example without "id".

    Args:
      index: the images and annotations of a file.
      place: the number of the image in the index.
      images: the folder of the image files.
      classes: names of the classes 1, 2, ...; None takes the categories of the index.
      orientation: see `CocoInstances`.
      setting: the user's setting that holds `orientation`, for errors; None if there is none.
      for_scores: see `CocoInstances`.

    Raises:
      ValueError: the image is unreadable or its size is not the index's (the message names the
        file), or a mask cannot be drawn (the message names the annotation).
    """
    path = images / index.file_names[place]
    size = tuple(index.sizes[place].tolist())
    image = match_channels(read_image(path, orientation=orientation), 3)
    if (shape := image.shape[:2]) != size:
        reason = explain_size(path, shape, size, orientation=orientation, setting=setting)
        raise ValueError(f"{path}: size {shape}, but {index.path} says {size}{reason}")
    found = index.annotations(place, flat=for_scores)
    names = tuple(index.categories.values() if classes is None else classes)
    number_of_name = {name: number for number, name in enumerate(names, 1)}
    numbers = {id_key(own): number_of_name.get(name) for own, name in index.categories.items()}
    annotated = np.array([annotation.box for annotation in found], np.float64).reshape(-1, 4)
    boxes = annotated.copy()
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, [*size[::-1]] * 2).astype(np.float32)
    masks = tuple(
        _draw_mask(annotation, box, size, index.path)
        for annotation, box in zip(found, boxes, strict=True)
    )
    areas = [_area(annotation, mask) for annotation, mask in zip(found, masks, strict=True)]
    example = {
        "image_id": index.image_ids[place : place + 1].tolist()[0],
        "image": image,
        "boxes": boxes,
        "classes": np.array([numbers[annotation.category] for annotation in found], np.int32),
        "masks": masks,
        "crowd": np.array([annotation.crowd for annotation in found], bool),
        "areas": np.array(areas, np.float32),
        "has_mask": np.array([annotation.segmentation is not None for annotation in found], bool),
    }
    if for_scores:
        example["annotated_boxes"] = annotated
        example["annotated_areas"] = np.array(areas, np.float64)
    return example


def _draw_mask(
    annotation: Annotation, box: np.ndarray, size: tuple[int, int], path: Path
) -> CroppedMask:
    if annotation.segmentation is None:
        left, top, right, bottom = np.rint(box).astype(int).tolist()
        right, bottom = max(right, left + 1), max(bottom, top + 1)  # an object has a pixel
        left, top = min(left, size[1] - 1), min(top, size[0] - 1)
        pixels = np.ones((min(bottom, size[0]) - top, min(right, size[1]) - left), bool)
        return crop_mask(pixels, top=top, left=left)
    try:
        return mask_from_segmentation(annotation.segmentation, size)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: image {annotation.image}: {error}") from error


def _area(annotation: Annotation, mask: CroppedMask) -> float:
    """The area as annotated; without it the pixels of the mask, or the box without a mask."""
    if annotation.area is not None:
        return annotation.area
    if annotation.segmentation is None and annotation.box is not None:
        return annotation.box[2] * annotation.box[3]
    return mask.area
