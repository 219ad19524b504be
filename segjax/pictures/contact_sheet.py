"""Draws examples beside their labels, for a person to look at before training."""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax.labels import IGNORE_LABEL
from segjax.pictures.canvas import resize_nearest, text_line
from segjax.pictures.overlays import overlay, overlay_instances, to_rgb


def draw_tile(
    example: dict, caption: str, *, background: int | None = 0, size: int = 256
) -> np.ndarray:
    """Draws an image and, beside it, the same image with its labels.

    Instances or objects are coloured if the example has any, else classes. Ignored pixels (255) are
    hatched, and the field of view is outlined in white. Smaller objects are drawn over larger ones.

    Args:
      example: arrays as a `Source` gives them.
      caption: text above the tile.
      background: the class that stays uncoloured; None colours all classes.
      size: the longer side of the image in the tile, in pixels.

    Returns:
      uint8 RGB [height, width, 3].
    """
    height, width = example["image"].shape[:2]
    scale = size / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(to_rgb(example["image"]), shape, interpolation=cv2.INTER_AREA)
    if "masks" in example:
        marked = overlay_instances(image, resize_nearest(_draw_objects(example), image))
    elif "instances" in example:
        labels = resize_nearest(example["labels"], image)
        marked = overlay(image, np.where(labels == IGNORE_LABEL, labels, 0))
        marked = overlay_instances(marked, resize_nearest(example["instances"], image))
    else:
        labels = resize_nearest(example["labels"], image)
        marked = overlay(image, labels, background=background)
    if "field_of_view" in example:
        field = resize_nearest(example["field_of_view"], image).astype(np.uint8)
        outlines, _ = cv2.findContours(field, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(marked, outlines, -1, (255, 255, 255), 1)
    pair = np.hstack([image, marked])
    return np.vstack([text_line(caption, pair.shape[1], size=0.4), pair])


def _draw_objects(example: dict) -> np.ndarray:
    """Returns the number of the smallest object at each pixel, from 1; 0 if none: int32 [H, W]."""
    instances = np.zeros(example["image"].shape[:2], np.int32)
    for number, mask in sorted(enumerate(example["masks"], 1), key=lambda item: -item[1].area):
        left, top, right, bottom = mask.box
        instances[top:bottom, left:right][mask.pixels] = number
    return instances


def join_tiles(tiles: Sequence[np.ndarray], *, columns: int = 3) -> np.ndarray:
    """Lays tiles out in rows on white, as uint8 [height, width, 3]."""
    gap = 6
    height = max(tile.shape[0] for tile in tiles) + gap
    width = max(tile.shape[1] for tile in tiles) + gap
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
