"""Draws COCO annotations as masks, pixel for pixel as COCO's own code does, in NumPy."""

from collections.abc import Sequence

import numpy as np

from segjax.coco.run_lengths import decode

SCALE = 5  # COCO draws outlines on a grid this many times finer than the pixels


def draw_segmentation(segmentation: Sequence | dict, size: tuple[int, int]) -> np.ndarray:
    """Draws an annotation's "segmentation": the union of its polygons, or its run lengths.

    Args:
      segmentation: polygons [x0, y0, x1, y1, ...] in continuous pixel coordinates, or
        {"counts": run lengths, "size": [H, W]}. Run lengths may be compressed; those of COCO's
        crowds are not.
      size: height and width of the image.

    Returns:
      bool [H, W].

    Raises:
      ValueError: the segmentation has another form or another size.
    """
    if isinstance(segmentation, dict):
        if "counts" not in segmentation or tuple(segmentation.get("size", ())) != tuple(size):
            raise ValueError(f"expected run lengths for {size}, found {segmentation!r:.60}")
        return decode(segmentation)
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise ValueError(f"expected polygons or run lengths, found {segmentation!r:.60}")
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        mask |= draw_polygon(polygon, size)
    return mask


def paste_mask(mask, size: tuple[int, int]) -> np.ndarray:
    """Draws a mask that is held as a window into an image of zeros.

    Args:
      mask: the window's `top`, `left` and `pixels`, bool [h, w].
      size: height and width of the image.

    Returns:
      bool [H, W].
    """
    whole = np.zeros(size, bool)
    height, width = mask.pixels.shape
    whole[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return whole


def draw_polygon(polygon: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Fills a polygon as COCO's maskApi.c does (rleFrPoly), so that areas and AP agree with it.

    The outline is drawn on a finer grid. Where it crosses a column of pixel centres, all pixels
    below switch between outside and inside.

    Args:
      polygon: [x0, y0, x1, y1, ...], at least three corners.
      size: height and width of the image.

    Returns:
      bool [H, W].
    """
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or corners.size < 6 or corners.size % 2:
        raise ValueError(f"expected a polygon [x0, y0, x1, y1, ...], found {polygon!r:.40}")
    height, width = size
    x, y = _outline(corners.reshape(-1, 2))
    # A step between two fine columns counts if the left one holds pixel centres.
    steps = np.flatnonzero(np.diff(x))
    column = (np.minimum(x[steps], x[steps + 1]) + 0.5) / SCALE - 0.5
    row = (np.minimum(y[steps], y[steps + 1]) + 0.5) / SCALE - 0.5
    centres = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    column = column[centres].astype(np.int64)
    row = np.ceil(np.clip(row[centres], 0, height)).astype(np.int64)
    mask = np.zeros(size, bool)
    if column.size:
        left, right = column.min(), column.max() + 1  # a closed outline fills only these
        changes = np.bincount((column - left) * height + row, minlength=(right - left) * height + 1)
        inside = np.bitwise_xor.accumulate(changes[:-1].astype(np.uint8) & 1)
        mask[:, left:right] = inside.reshape(-1, height).T
    return mask


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the fine-grid points along the closed outline of corners [N, 2]."""
    start = (SCALE * corners + 0.5).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    length = np.abs(end - start)
    # An edge has one point per step along its longer axis. They are computed from its lower end,
    # whichever way the edge runs.
    along = np.where(length[:, 0] >= length[:, 1], 0, 1)
    edges = np.arange(len(start))
    steps = length[edges, along]
    backward = start[edges, along] > end[edges, along]
    first = np.where(backward[:, None], end, start)
    last = np.where(backward[:, None], start, end)
    across = 1 - along
    slope = (last[edges, across] - first[edges, across]) / np.maximum(steps, 1)

    edge = np.repeat(edges, steps + 1)
    offset = np.arange(edge.size) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    offset = np.where(backward[edge], steps[edge] - offset, offset)
    long = first[edge, along[edge]] + offset
    short = (first[edge, across[edge]] + slope[edge] * offset + 0.5).astype(np.int64)
    upright = along[edge] == 1
    return np.where(upright, short, long), np.where(upright, long, short)
