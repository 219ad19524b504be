"""Draws examples with their labels side by side, for a person to look at before training."""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax.canvas import resize_nearest, text_line
from segjax.visualize import overlay, overlay_instances, to_rgb


def draw_tile(example: dict, caption: str, *, size: int = 256) -> np.ndarray:
    """Draws an image and, beside it, the same image with its labels.

    Instances are coloured where there are any, else classes; ignored pixels (255) are hatched; the
    field of view is outlined in white.

    Args:
      example: arrays as a `Source` gives them.
      caption: text above.
      size: the longer side of the image in the tile, in pixels.

    Returns:
      uint8 RGB [height, width, 3].
    """
    height, width = example["image"].shape[:2]
    scale = size / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(to_rgb(example["image"]), shape, interpolation=cv2.INTER_AREA)
    labels = resize_nearest(example["labels"], image)
    if "instances" in example:
        marked = overlay(image, np.where(labels == 255, labels, 0))
        marked = overlay_instances(marked, resize_nearest(example["instances"], image))
    else:
        marked = overlay(image, labels)
    if "field_of_view" in example:
        field = np.uint8(resize_nearest(example["field_of_view"], image))
        outlines, _ = cv2.findContours(field, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(marked, outlines, -1, (255, 255, 255), 1)
    pair = np.hstack([image, marked])
    return np.vstack([text_line(caption, pair.shape[1], size=0.4), pair])


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
