"""Masks of COCO's annotations, pixel by pixel those of COCO's own code, in NumPy."""

from collections.abc import Sequence

import numpy as np

from segjax.coco.run_lengths import decode

SCALE = 5  # COCO draws outlines on a grid that is so many times finer


def draw_segmentation(segmentation: Sequence | dict, size: tuple[int, int]) -> np.ndarray:
    """Draws the "segmentation" of an annotation: the union of its polygons, or its runs.

    Args:
      segmentation: polygons [x0, y0, x1, y1, ...] in continuous pixel coordinates, or
        {"counts": run lengths, "size": [H, W]}, compressed or, as COCO has them for crowds, not.
      size: height and width of the image.

    Returns:
      bool [H, W].

    Raises:
      ValueError: the segmentation is of another form, or of another size.
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


def draw_polygon(polygon: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Fills a polygon as COCO's maskApi.c does (rleFrPoly), so that areas and AP agree with it.

    The outline is drawn on a finer grid. Wherever it enters the column of a pixel's centre, all
    that is below changes between outside and inside.

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
    # Steps from one fine column to the next count where the lesser is the centre of a pixel.
    steps = np.flatnonzero(np.diff(x))
    column = (np.minimum(x[steps], x[steps + 1]) + 0.5) / SCALE - 0.5
    row = (np.minimum(y[steps], y[steps + 1]) + 0.5) / SCALE - 0.5
    centres = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    column = column[centres].astype(np.int64)
    row = np.ceil(np.clip(row[centres], 0, height)).astype(np.int64)
    mask = np.zeros(size, bool)
    if column.size:
        left, right = column.min(), column.max() + 1  # an outline is closed: it leaves no others
        changes = np.bincount((column - left) * height + row, minlength=(right - left) * height + 1)
        inside = np.bitwise_xor.accumulate(changes[:-1].astype(np.uint8) & 1)
        mask[:, left:right] = inside.reshape(-1, height).T
    return mask


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points of the fine grid along the closed outline through corners [N, 2], in order."""
    start = (SCALE * corners + 0.5).astype(np.int64)
    end = np.roll(start, -1, axis=0)
    length = np.abs(end - start)
    # Along its longer direction an edge has a point in each column (or row), counted from its
    # lower end, whichever way it is gone.
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
