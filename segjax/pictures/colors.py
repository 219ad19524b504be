"""Colours for classes, instances and errors: stable, and distinct for colour-blind readers."""

import functools

import cv2
import numpy as np

ERROR_COLORS = {
    "correct": (38, 132, 104),
    "false positive": (224, 86, 30),
    "false negative": (86, 170, 240),
    "wrong class": (240, 228, 66),
    "background": (22, 24, 28),
    "ignored": (128, 128, 128),
}

# A slate for class 0, which is the background in most sets. Then the colours of Okabe and Ito
# ("Color universal design", 2008), which readers with any colour vision can tell apart.
_FIRST_COLORS = np.array(
    [
        (104, 122, 152),
        (230, 159, 0),
        (86, 180, 233),
        (213, 94, 0),
        (0, 158, 115),
        (204, 121, 167),
        (240, 228, 66),
        (0, 114, 178),
    ],
    np.uint8,
)


@functools.cache
def color_map(num_classes: int) -> np.ndarray:
    """Returns a colour for each class, uint8 [num_classes, 3], read-only.

    A class keeps its colour whatever the number of classes. Beyond the first eight, each colour is
    the one farthest in CIELAB from all earlier ones and from greys (the sequential search of
    Glasbey et al., "Colour displays for categorical images", 2007).
    """
    levels = np.arange(16, 256, 24, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness = _lab(grid)[:, 0]
    grid = grid[(lightness > 30) & (lightness < 90)]
    candidates = _lab(grid)
    distance = np.linalg.norm(candidates[:, 1:], axis=1)  # from the grey axis
    for color in _lab(_FIRST_COLORS):
        distance = np.minimum(distance, np.linalg.norm(candidates - color, axis=1))
    chosen = list(_FIRST_COLORS[:num_classes])
    while len(chosen) < num_classes:
        farthest = int(distance.argmax())
        chosen.append(grid[farthest])
        distance = np.minimum(distance, np.linalg.norm(candidates - candidates[farthest], axis=1))
    colors = np.array(chosen, np.uint8).reshape(-1, 3)
    colors.flags.writeable = False
    return colors


def _lab(colors: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


def instance_colors(ids: np.ndarray) -> np.ndarray:
    """Returns a bright colour for each instance id, uint8 [..., 3].

    Hues follow the golden ratio, so that neighbouring ids lie far apart on the colour circle. An id
    keeps its colour from frame to frame.
    """
    ids = np.asarray(ids)
    hue = 360 * np.mod(ids * 0.6180339887498949, 1.0)
    saturation = np.choose(ids % 3, [0.85, 0.6, 0.95])
    hsv = np.stack([hue, saturation, np.ones(ids.shape)], axis=-1).astype(np.float32)
    rgb = cv2.cvtColor(hsv.reshape(1, -1, 3), cv2.COLOR_HSV2RGB).reshape(*ids.shape, 3)
    return np.round(255 * rgb).astype(np.uint8)
