"""Reads label maps of official layouts and converts their stored values to class ids."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segjax.data.sources.files import describe_values


def read_label_map(path: Path, class_ids: Mapping[int, int]) -> np.ndarray:
    """Reads a label map and converts its stored values to class ids, uint8 [H, W].

    In a palette image, the stored indices count, never the colours.

    Args:
      path: a grey or palette PNG of 8 bits.
      class_ids: the class id of each stored value that may occur; 255 = ignored.

    Raises:
      ValueError: the file is unreadable, in colour, or has other values; the message names it.
    """
    return to_class_ids(read_stored_values(path), class_ids, origin=str(path))


def to_class_ids(stored: np.ndarray, class_ids: Mapping[int, int], *, origin: str) -> np.ndarray:
    """Converts stored values to class ids, uint8 [H, W].

    Args:
      stored: integers [H, W].
      class_ids: the class id of each stored value that may occur; 255 = ignored.
      origin: the file or record of the values, for the error.

    Raises:
      ValueError: other values occur.
    """
    # Counting is three times as fast as np.unique's sorting, but fails on negative numbers.
    small = stored.dtype == np.uint8
    found = np.flatnonzero(np.bincount(stored.ravel())) if small else np.unique(stored)
    wrong = np.setdiff1d(found, list(class_ids))
    if wrong.size:
        raise ValueError(f"{origin}: {describe_values(wrong)}; expected {_runs(class_ids)}")
    low = min(0, *class_ids)
    table = np.zeros(max(class_ids) - low + 1, np.uint8)
    table[np.array(list(class_ids)) - low] = list(class_ids.values())
    return table[stored.astype(np.int64) - low if low else stored]


def read_stored_values(path: Path) -> np.ndarray:
    """Reads the stored values of a grey or palette image of 8 bits, uint8 [H, W].

    An orientation tag is applied, as to images (`segjax.data.orientation`).

    Raises:
      ValueError: the file is unreadable or has other pixels; the message names it.
    """
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            mode, values = image.mode, np.array(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: damaged, cut short or no image") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise ValueError(f"{path}: damaged, cut short or no image ({error})") from error
    if pages > 1:
        raise ValueError(f"{path}: expected one label map, found {pages} pages")
    if mode not in ("L", "P"):
        kinds = {"1": "pixels of 1 bit", "RGB": "colours", "RGBA": "colours"}
        kind = kinds.get(mode, f"{mode} pixels")
        raise ValueError(
            f"{path}: a label map stores class ids, as grey or as palette indices of 8 bits; "
            f"found {kind}. Was it saved again by a program that expands palettes?"
        )
    return values


def _runs(values: Iterable[int]) -> str:
    """Formats a set of values as ranges, such as "0 to 11, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
