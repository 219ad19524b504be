"""Separates touching cells in labels, and recovers instances from such labels."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from segjax.labels import IGNORE_LABEL


def separate_touching(instances: np.ndarray, *, width: int) -> np.ndarray:
    """Draws cells as foreground, with a strip of background where two cells touch.

    A network that labels pixels needs such a strip to tell touching cells apart. U-Net (2015,
    section 3) computed it "using morphological operations" and does not give its width. Outlines
    that touch no other cell do not change.

    Args:
      instances: [H, W] cell ids, 0 = background.
      width: pixels of background between two cells that touch along a straight line, at least 1.
        Each cell loses half of it; of an odd width, the cell with the lower id loses one pixel
        more.

    Returns:
      uint8 [H, W]: 1 = cell, 0 = background. No two cells are 8-connected.
    """
    if width < 1:
        raise ValueError(f"the width of the gap must be at least 1 pixel, got {width}")
    lowest, _ = _ids_within(instances, width // 2)
    _, highest = _ids_within(instances, (width + 1) // 2)
    return ((instances > 0) & (lowest == instances) & (highest == instances)).astype(np.uint8)


def label_components(
    foreground: np.ndarray, *, min_size: int = 0, connectivity: int = 4
) -> np.ndarray:
    """Numbers the connected components of a foreground.

    Args:
      foreground: bool or integer [H, W], 0 = background.
      min_size: components with fewer pixels are dropped.
      connectivity: 4 or 8. With 4, a strip of background that is connected only over corners
        still separates two cells; predicted strips of one pixel often are like that.

    Returns:
      int32 [H, W]: 1..n, 0 = background.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity}")
    mask = (np.asarray(foreground) != 0).view(np.uint8)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    kept = statistics[:, cv2.CC_STAT_AREA] >= min_size
    kept[0] = False
    return (np.cumsum(kept) * kept).astype(np.int32)[parts]


def close_gaps(instances: np.ndarray, *, width: int) -> np.ndarray:
    """Fills the strips that `separate_touching` cuts, from the cells on either side.

    Use it on predictions of a network trained on separated labels, before comparing them with whole
    cells. It fills only background between two cells at most `width` pixels apart; each pixel joins
    the nearest cell. All other outlines stay.

    Args:
      instances: [H, W] cell ids, 0 = background.
      width: the `width` given to `separate_touching`.

    Returns:
      int32 [H, W].
    """
    if width < 1:
        raise ValueError(f"the width of the gap must be at least 1 pixel, got {width}")
    instances = np.asarray(instances, np.int32)
    cells = (instances > 0).view(np.uint8)
    # Closing also fills hollows of one cell, so only pixels near two cells count as gaps. The two
    # anchors are opposite corners because a window of even size has no centre. Without margins,
    # OpenCV would let cells grow to a near edge of the picture.
    window = np.ones((width + 1, width + 1), np.uint8)
    closed = cv2.dilate(np.pad(cells, width), window, anchor=(0, 0))
    closed = cv2.erode(closed, window, anchor=(width, width))[width:-width, width:-width]
    lowest, highest = _ids_within(instances, width)
    gaps = (cells == 0) & (closed > 0) & (lowest < highest)
    if not gaps.any():
        return instances.copy()
    nearest = np.asarray(
        ndimage.distance_transform_edt(cells == 0, return_distances=False, return_indices=True)
    )
    return np.where(gaps, instances[tuple(nearest)], instances)


def _ids_within(instances: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest cell id within `radius` rows and columns of each pixel.

    If no cell is that near, the lowest exceeds the highest.
    """
    # OpenCV has no morphology for int32; uint16 is several times as fast as float64.
    small = instances.max(initial=0) < np.iinfo(np.uint16).max
    ids = instances.astype(np.uint16 if small else np.float64)
    lowest = ids.copy()
    lowest[ids == 0] = np.iinfo(np.uint16).max if small else np.inf
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return cv2.erode(lowest, window), cv2.dilate(ids, window)


@dataclass(frozen=True)
class SeparateTouching:
    """Transform: sets "labels" to background in the strips of `separate_touching`.

    Ignored pixels stay ignored; "instances" does not change.

    Attributes:
      width: see `separate_touching`.
    """

    width: int

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        instances, labels = example["instances"], example["labels"]
        strips = (instances > 0) & (separate_touching(instances, width=self.width) == 0)
        return {**example, "labels": np.where(strips & (labels != IGNORE_LABEL), 0, labels)}
