"""Draws examples beside their labels, for a person to look at before training."""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax.coco import run_lengths as rle
from segjax.labels import IGNORE_LABEL
from segjax.pictures.canvas import resize_nearest, text_line
from segjax.pictures.instances import CROWD_COLOR, draw_detections, new_colors
from segjax.pictures.overlays import overlay, overlay_instances, to_rgb, with_legend

_SIDE_WITH_OBJECTS = 512  # pixels; the names of objects are unreadable on less
_SHEET_WIDTH = 2070  # pixels: three columns of label maps, or two of objects


def draw_tile(
    example: dict,
    caption: str,
    class_names: Sequence[str] = (),
    *,
    background: int | None = 0,
    size: int = 256,
) -> np.ndarray:
    """Draws an image and, beside it, the same image with its labels.

    Objects have a colour, a box and a name each, smaller ones over larger ones. Crowds are grey,
    and an object without a mask is its box alone. Instances are coloured without names. Classes are
    coloured with a legend below. Ignored pixels (255) are hatched, and the field of view is
    outlined in white.

    Args:
      example: arrays as a `Source` gives them.
      caption: text above the tile.
      class_names: the name of each class id. Objects need them; without them a label map has no
        legend.
      background: the class that stays uncoloured; None colours all classes.
      size: the longer side of the image in the tile, in pixels. With objects it is 512, so that
        their names can be read.

    Returns:
      uint8 RGB [height, width, 3].
    """
    height, width = example["image"].shape[:2]
    scale = (_SIDE_WITH_OBJECTS if "masks" in example else size) / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(to_rgb(example["image"]), shape, interpolation=cv2.INTER_AREA)
    legend_of = None
    if "masks" in example:
        marked = _draw_objects(example, image, class_names)
    elif "instances" in example:
        labels = resize_nearest(example["labels"], image)
        marked = overlay(image, np.where(labels == IGNORE_LABEL, labels, 0))
        marked = overlay_instances(marked, resize_nearest(example["instances"], image))
    else:
        legend_of = labels = resize_nearest(example["labels"], image)
        marked = overlay(image, labels, background=background)
    if "field_of_view" in example:
        field = resize_nearest(example["field_of_view"], image).astype(np.uint8)
        outlines, _ = cv2.findContours(field, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(marked, outlines, -1, (255, 255, 255), 1)
    pair = np.hstack([image, marked])
    if class_names and legend_of is not None:
        valid = legend_of[legend_of != IGNORE_LABEL]
        unknown = range(len(class_names), int(valid.max(initial=0)) + 1)
        names = [*class_names, *(f"{value}: no class" for value in unknown)]
        pair = with_legend(pair, legend_of, names, background=background)
    return np.vstack([text_line(caption, pair.shape[1], size=0.4), pair])


def _draw_objects(example: dict, image: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draws the objects of an example on its resized image."""
    height, width = example["image"].shape[:2]
    scale = np.divide(image.shape[1::-1], (width, height))
    crowd = example["crowd"]
    colors = new_colors(len(crowd))
    colors[crowd] = CROWD_COLOR
    numbers = example["classes"] + len(class_names) * crowd
    has_mask = example.get("has_mask", np.ones(len(crowd), bool))
    nothing = np.zeros(image.shape[:2], bool)
    return draw_detections(
        image,
        boxes=example["boxes"] * np.tile(scale, 2),
        classes=numbers,
        class_names=[*class_names, *(f"{name} (crowd)" for name in class_names)],
        masks=[
            rle.encode(_reduce(mask, (height, width), image.shape[:2]) if has else nothing)
            for mask, has in zip(example["masks"], has_mask, strict=True)
        ],
        colors=colors,
    )


def _reduce(mask, shape: tuple[int, int], new_shape: tuple[int, int]) -> np.ndarray:
    """Resizes a mask within an image to a new size by nearest neighbour, bool `new_shape`.

    It looks at the mask's own box only: large images may have thousands of objects.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old // new).astype(int)
        for new, old in zip(new_shape, shape, strict=True)
    )
    left, top, right, bottom = mask.box
    y = np.flatnonzero((rows >= top) & (rows < bottom))
    x = np.flatnonzero((columns >= left) & (columns < right))
    resized = np.zeros(new_shape, bool)
    resized[np.ix_(y, x)] = mask.pixels[np.ix_(rows[y] - top, columns[x] - left)]
    return resized


def join_tiles(tiles: Sequence[np.ndarray], *, columns: int | None = None) -> np.ndarray:
    """Lays tiles out in rows on white, as uint8 [height, width, 3].

    None takes as many columns as keep the sheet's width within 2070 pixels, and at least one.
    """
    gap = 6
    width = max(tile.shape[1] for tile in tiles) + gap
    columns = min(columns or max(1, _SHEET_WIDTH // width), len(tiles))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) + gap for row in rows]
    sheet = np.full((sum(heights), columns * width, 3), 255, np.uint8)
    for row, top in zip(rows, np.cumsum([0, *heights[:-1]]), strict=True):
        for column, tile in enumerate(row):
            left = column * width
            sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet
