"""Finds objects in overlapping windows of a large image, and joins those that borders cut.

A detector resizes an image to its size limit, so that the small objects of a large image vanish.
In windows, it sees them at the scale at which it was trained. Three tools do the same:

- SAHI (Akyon et al., ICIP 2022, arXiv:2202.06934) merges boxes whose intersection covers half of
  the smaller one ("GREEDYNMM", "IOS"). Near neighbours in crowds merge as well.
- StarDist (`predict_instances_big`) keeps each object from one window. No object may be larger than
  the overlap.
- Cellpose averages the fields of its tiles before it forms objects. Mask R-CNN has no such fields.

Here masks are compared, and only where both windows see: there, two detections of one object have
the same pixels, however large the object is. See `join_windows` for the rule.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segjax.coco import run_lengths as rle
from segjax.inference.coverings import SlidingWindow

SAME_OBJECT = 0.5  # smallest overlap of two masks of one object, where both windows see
BEYOND = 0.1  # share of a mask outside of a window that tells that the object goes on there
# A box ends at a border if it comes within this share of its own side, or within two pixels.
# Predicted boxes rarely end on the very pixel.
_NEAR, _NEAR_PIXELS = 0.05, 2.0


@dataclass(frozen=True)
class Window:
    """A window of an image: rows from `top` to `bottom` and columns from `left` to `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def cut(self, image: np.ndarray) -> np.ndarray:
        """Returns the pixels of the window."""
        return image[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class InstanceTiles:
    """Square windows that overlap; the last ones of a row or column are moved back inside.

    Attributes:
      side: the side of a window in pixels of the image. A shorter side of the image is the window's
        too, so that all windows of an image have one size and one scale.
      overlap: the share of a window that the next one sees again, at least.
    """

    side: int
    overlap: float = 0.25

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"tile={self.side}; expected a side of at least 1 pixel")
        if not 0 < self.overlap <= 0.5:
            raise ValueError(f"tile_overlap={self.overlap}; expected above 0 and at most 0.5")

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Returns the windows of an image of this height and width, row by row."""
        height, width = (min(self.side, length) for length in size)
        step = max(int(self.side * (1 - self.overlap)), 1)
        covering = SlidingWindow((height, width), (min(step, height), min(step, width)))
        return [
            Window(top, left, top + height, left + width) for top, left in covering.positions(size)
        ]


def tiles_of(side: int | None, overlap: float) -> InstanceTiles | None:
    """Returns the windows of the settings "tile" and "tile_overlap"; None if there is no side."""
    return None if side is None else InstanceTiles(side, overlap)


@dataclass(frozen=True)
class Detection:
    """An object found in a window, in the frame of the image.

    Attributes:
      box: x_min, y_min, x_max and y_max.
      score, label: the score and the class id.
      top, left: the place of the mask.
      mask: bool [h, w].
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    top: int
    left: int
    mask: np.ndarray

    def pixels_in(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Returns the mask over a region of the image, bool [bottom − top, right − left]."""
        region = np.zeros((bottom - top, right - left), bool)
        height, width = self.mask.shape
        first_row, last_row = max(self.top, top), min(self.top + height, bottom)
        first, last = max(self.left, left), min(self.left + width, right)
        if first_row < last_row and first < last:
            region[first_row - top : last_row - top, first - left : last - left] = self.mask[
                first_row - self.top : last_row - self.top, first - self.left : last - self.left
            ]
        return region


def join_windows(
    found: Sequence[Mapping], windows: Sequence[Window], size: tuple[int, int]
) -> dict:
    """Joins the detections in overlapping windows of an image.

    A detection is cut if its box ends at a border of its window inside the image. Two detections
    of one class in different windows are compared in the region that both windows see. Their
    overlap is the intersection over union. It is the intersection divided by the smaller mask if a
    border that cuts one of them runs through the other's window: the cut one may be a sliver. They
    are one object from `SAME_OBJECT` on. A detection sees beyond the other's window if more than
    `BEYOND` of its pixels lie there.

    1. If both see beyond the other's window, they are joined.
    2. If one does, the other is dropped, unless the one is cut: then they are joined.
    3. If none does, a cut one is dropped for one that is not cut. Of two that are not cut, the one
       with the lower score is dropped; each suppresses at most one detection of another window, so
       that neighbours which a window tells apart stay apart. Two cut ones are joined.

    Joined detections form chains: the mask is the union of all that are not dropped, the box
    surrounds theirs, and the score is their highest.

    Args:
      found: for each window, "boxes" [n, 4], "scores" [n] and "classes" [n] in the frame of the
        window, and "masks", a list of (top, left, bool [h, w]) in that frame.
      windows: the windows, row by row.
      size: height and width of the image.

    Returns:
      "boxes" float32 [d, 4], "scores" float32 [d] descending, "classes" int32 [d] and "masks", COCO
      run lengths, in the frame of the image.
    """
    detections = [
        [*_in_image(of_window, window)] for of_window, window in zip(found, windows, strict=True)
    ]
    cut = [
        [_is_cut(each.box, window, size) for each in of_window]
        for of_window, window in zip(detections, windows, strict=True)
    ]
    dropped, links = set(), []
    for first, second in _neighbours(windows):
        whole_pairs = []
        for i, j, overlap in _same_objects(
            *(detections[place] for place in (first, second)),
            *(windows[place] for place in (first, second)),
        ):
            pair = (first, i), (second, j)
            ours, theirs = (detections[place][number] for place, number in pair)
            beyond = _sees_beyond(ours, windows[second]), _sees_beyond(theirs, windows[first])
            cuts = cut[first][i], cut[second][j]
            if beyond == (False, False) and cuts == (False, False):
                whole_pairs.append((overlap, pair))
            elif beyond[0] == beyond[1]:
                if all(beyond) or all(cuts):
                    links.append(pair)
                else:
                    dropped.add(pair[cuts.index(True)])
            elif cuts[beyond.index(True)]:
                links.append(pair)
            else:
                dropped.add(pair[beyond.index(False)])
        dropped |= _suppressed(whole_pairs, detections)
    groups = _connected(
        [
            (place, number)
            for place, of_window in enumerate(detections)
            for number in range(len(of_window))
            if (place, number) not in dropped
        ],
        links,
    )
    joined = [_union([detections[place][number] for place, number in group]) for group in groups]
    joined.sort(key=lambda each: -each.score)
    return {
        "boxes": np.array([each.box for each in joined], np.float32).reshape(-1, 4),
        "scores": np.array([each.score for each in joined], np.float32),
        "classes": np.array([each.label for each in joined], np.int32),
        "masks": [
            rle.encode(each.mask, size=size, top=each.top, left=each.left) for each in joined
        ],
    }


def _in_image(found: Mapping, window: Window) -> Iterator[Detection]:
    shift = np.array([window.left, window.top, window.left, window.top], np.float32)
    for box, score, label, (top, left, mask) in zip(
        found["boxes"], found["scores"], found["classes"], found["masks"], strict=True
    ):
        place = top + window.top, left + window.left
        yield Detection(tuple((box + shift).tolist()), float(score), int(label), *place, mask)


def _ends(box, window: Window) -> tuple[bool, bool, bool, bool]:
    """Whether a box ends at the left, top, right and bottom of its window."""
    x_min, y_min, x_max, y_max = box
    across = max(_NEAR * (x_max - x_min), _NEAR_PIXELS)
    down = max(_NEAR * (y_max - y_min), _NEAR_PIXELS)
    return (
        x_min - window.left <= across,
        y_min - window.top <= down,
        window.right - x_max <= across,
        window.bottom - y_max <= down,
    )


def _is_cut(box, window: Window, size: tuple[int, int]) -> bool:
    height, width = size
    inner = window.left > 0, window.top > 0, window.right < width, window.bottom < height
    return any(end and inside for end, inside in zip(_ends(box, window), inner, strict=True))


def _is_cut_within(box, window: Window, other: Window) -> bool:
    """Whether a border of its window cuts a box where the other window goes on."""
    inner = (
        other.left < window.left,
        other.top < window.top,
        other.right > window.right,
        other.bottom > window.bottom,
    )
    return any(end and inside for end, inside in zip(_ends(box, window), inner, strict=True))


def _sees_beyond(detection: Detection, other: Window) -> bool:
    """Whether more than `BEYOND` of a mask lies outside of another window."""
    inside = detection.pixels_in(other.top, other.left, other.bottom, other.right)
    area = np.count_nonzero(detection.mask)
    return bool(area - np.count_nonzero(inside) > BEYOND * area)


def _neighbours(windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
    """Yields the places of each two windows that overlap; windows go row by row."""
    for first, window in enumerate(windows):
        for second in range(first + 1, len(windows)):
            other = windows[second]
            if other.top >= window.bottom:
                break
            if other.left < window.right and window.left < other.right:
                yield first, second


def _same_objects(ours, theirs, window, other) -> Iterator[tuple[int, int, float]]:
    """Yields (i, j, overlap) for the detections of two windows that are one object."""
    if not ours or not theirs:
        return
    top, left = max(window.top, other.top), max(window.left, other.left)
    bottom, right = min(window.bottom, other.bottom), min(window.right, other.right)
    boxes, others = (np.array([each.box for each in found]) for found in (ours, theirs))
    low = np.maximum(np.maximum(boxes[:, None, :2], others[None, :, :2]), (left, top))
    high = np.minimum(np.minimum(boxes[:, None, 2:], others[None, :, 2:]), (right, bottom))
    close = (high - low > -1).all(axis=2)  # a mask may reach a pixel beyond its box
    close &= np.equal.outer(*([each.label for each in found] for found in (ours, theirs)))
    regions = [
        {place: found[place].pixels_in(top, left, bottom, right) for place in {*places.tolist()}}
        for found, places in zip((ours, theirs), np.nonzero(close), strict=True)
    ]
    for i, j in np.argwhere(close).tolist():
        mine, its = regions[0][i], regions[1][j]
        intersection = np.count_nonzero(mine & its)
        areas = np.count_nonzero(mine), np.count_nonzero(its)
        is_cut = _is_cut_within(ours[i].box, window, other)
        is_cut = is_cut or _is_cut_within(theirs[j].box, other, window)
        whole = min(areas) if is_cut else sum(areas) - intersection
        if intersection and intersection >= SAME_OBJECT * whole:
            yield i, j, intersection / whole


def _suppressed(pairs, detections) -> set[tuple[int, int]]:
    """Returns the lower-scored one of each pair; each detection is in at most one pair."""
    taken, dropped = set(), set()
    for _, pair in sorted(pairs, key=lambda each: -each[0]):
        if not taken & {*pair}:
            taken |= {*pair}
            first, second = (detections[place][number].score for place, number in pair)
            dropped.add(pair[0] if second > first else pair[1])
    return dropped


def _connected(members, links) -> list[list]:
    """Groups members that links connect; links of others are left out."""
    parent = {member: member for member in members}

    def root(member):
        while parent[member] != member:
            parent[member] = member = parent[parent[member]]
        return member

    for first, second in links:
        if first in parent and second in parent:
            parent[root(second)] = root(first)
    groups = defaultdict(list)
    for member in members:
        groups[root(member)].append(member)
    return [*groups.values()]


def _union(parts: Sequence[Detection]) -> Detection:
    if len(parts) == 1:
        return parts[0]
    boxes = np.array([part.box for part in parts])
    box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.mask.shape[0] for part in parts)
    right = max(part.left + part.mask.shape[1] for part in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for part in parts:
        height, width = part.mask.shape
        mask[
            part.top - top : part.top - top + height, part.left - left : part.left - left + width
        ] |= part.mask
    best = max(parts, key=lambda part: part.score)
    return dataclasses.replace(best, box=box, top=top, left=left, mask=mask)
