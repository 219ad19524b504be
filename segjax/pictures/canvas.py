"""Lays pictures out on white paper: captioned rows, lines of text and legends."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

_PAPER, _INK, _GAP = 255, (32, 34, 38), 8  # grey value, RGB, pixels between tiles
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def fit(image: np.ndarray) -> np.ndarray:
    """Resizes a picture for looking at.

    A longer side above 512 pixels is reduced to 512. A small picture is enlarged by the largest
    whole number that keeps it within 384 pixels, so that its pixels stay visible.
    """
    longest = max(image.shape[:2])
    scale = 512 / longest if longest > 512 else max(1, 384 // longest)
    size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)


def resize_nearest(labels: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Resizes labels [H, W] to the size of a picture by nearest neighbour and keeps their type."""
    labels = np.asarray(labels)
    rows, columns = (
        ((np.arange(new) + 0.5) * old // new).astype(int)
        for new, old in zip(picture.shape[:2], labels.shape, strict=True)
    )
    return labels[rows[:, None], columns]


def text_line(text: str, width: int, *, size: float = 0.5) -> np.ndarray:
    """Writes one line of text on a strip [height, width, 3], smaller if it would not fit."""
    needed = cv2.getTextSize(text, _FONT, size, 1)[0][0] + 2 * _GAP
    height = round(44 * size)
    strip = np.full((height, width, 3), _PAPER, np.uint8)
    size *= min(1.0, width / needed)
    return cv2.putText(strip, text, (_GAP, round(0.7 * height)), _FONT, size, _INK, 1, cv2.LINE_AA)


def title_rows(title: str, scores: Mapping[str, float] | None, width: int) -> list[np.ndarray]:
    """Writes a title and scores (three decimals, NaN as "-") on a strip; none if both are empty."""
    texts = [title] if title else []
    for name, value in (scores or {}).items():
        texts.append(f"{name} {value:.3f}" if np.isfinite(value) else f"{name} -")
    return [text_line("   ".join(texts), width, size=0.6)] if texts else []


def captioned_row(tiles: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sets pictures of equal height side by side, each under its name."""
    columns = []
    for name, tile in tiles.items():
        framed = np.pad(tile, ((0, 0), (_GAP, 0), (0, 0)), constant_values=_PAPER)
        columns.append(np.concatenate([text_line(name, framed.shape[1]), framed]))
    return np.pad(
        np.concatenate(columns, axis=1), ((0, 0), (0, _GAP), (0, 0)), constant_values=_PAPER
    )


def legend(title: str, entries: Mapping[str, Sequence[int] | np.ndarray], width: int) -> np.ndarray:
    """Draws a title, then a swatch and a name for each entry, on as many lines as needed."""
    start = x = _GAP + 80
    row, places = 0, []
    for name in entries:
        needed = 18 + cv2.getTextSize(name, _FONT, 0.5, 1)[0][0] + 2 * _GAP
        if x + needed > width and x > start:
            x, row = start, row + 1
        places.append((x, 22 * row + _GAP))
        x += needed
    strip = np.full((22 * (row + 1) + _GAP // 2, width, 3), _PAPER, np.uint8)
    cv2.putText(strip, title, (_GAP, _GAP + 11), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
    for (name, color), (x, top) in zip(entries.items(), places, strict=True):
        strip[top : top + 12, x : x + 12] = color
        cv2.putText(strip, name, (x + 18, top + 11), _FONT, 0.5, _INK, 1, cv2.LINE_AA)
    return strip


def stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Sets rows of equal width below each other, with a margin under the last."""
    return np.pad(np.concatenate(rows), ((0, _GAP), (0, 0), (0, 0)), constant_values=_PAPER)
