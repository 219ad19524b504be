"""Images that are read window by window, so that they may be larger than memory.

An image here has a `shape` [height, width, bands] and a `dtype`, and `image[rows, columns]` with
two slices reads a window, [h, w, bands]. Arrays and memory maps are such images too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from segjax.data.image_arrays import (
    TIFF_STARTS,
    check_npy,
    needs_tifffile,
    read_arrays,
    with_known_type,
)
from segjax.data.orientation import Orientation
from segjax.data.tiff import opened
from segjax.data.tiff_windows import NotInParts, open_tiff

BLOCK = 1024  # rows and columns of the windows in which an image is read once through


class Windows(Protocol):
    """An image that is read window by window."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, window: tuple[slice, slice], /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Mapped:
    """An image whose windows a function converts pixel by pixel.

    Attributes:
      image: the image.
      function: [h, w, bands] → [h, w, other bands]; a pixel of its result depends on that pixel
        alone.
    """

    image: Windows
    function: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def _first(self) -> np.ndarray:
        return self[:1, :1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.image.shape[:2], *self._first.shape[2:])

    @property
    def dtype(self) -> np.dtype:
        return self._first.dtype

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return self.function(self.image[window])


@dataclass(frozen=True, eq=False)
class Turned:
    """An image that is turned by quarters, or mirrored, or both.

    Attributes:
      image: the image.
      turn: turns an array [height, width, ...], such as `np.rot90`.
    """

    image: Windows
    turn: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def _axes(self) -> tuple[bool, bool, bool]:
        """Whether rows and columns are swapped; then, whether each is mirrored."""
        probe = np.arange(6).reshape(2, 3)
        turned = self.turn(probe)
        swapped = turned.shape == (3, 2)
        straight = probe.T if swapped else probe
        for rows in (False, True):
            for columns in (False, True):
                if np.array_equal(straight[:: -1 if rows else 1, :: -1 if columns else 1], turned):
                    return swapped, rows, columns
        raise ValueError("expected a function that turns or mirrors arrays")

    @property
    def shape(self) -> tuple[int, ...]:
        height, width, *rest = self.image.shape
        return (width, height, *rest) if self._axes[0] else (height, width, *rest)

    @property
    def dtype(self) -> np.dtype:
        return self.image.dtype

    def source(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Returns the rows and columns of the image that a window of the turned one shows."""
        swapped, *mirrored = self._axes
        ranges = []
        for window, is_mirrored, length in zip(
            (rows, columns), mirrored, self.shape[:2], strict=True
        ):
            first, last, _ = window.indices(length)
            last = max(first, last)
            ranges.append(
                slice(length - last, length - first) if is_mirrored else slice(first, last)
            )
        return (ranges[1], ranges[0]) if swapped else (ranges[0], ranges[1])

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return self.turn(self.image[self.source(*window)])


def open_images(
    path: Path, *, orientation: Orientation = "upright"
) -> tuple[list[Windows], str | None]:
    """Opens the images of a file for reading in windows.

    The pixels are those of `image_arrays.read_arrays`; errors in them are raised when a window is
    read. TIFF and NumPy files (.npy) are read in parts. Other files are decoded as a whole, and so
    are TIFFs of kinds that `segjax.data.tiff_windows` lists.

    Returns:
      The images, and the reason why they were decoded as a whole; None if they are read in parts.

    Raises:
      ValueError: the file is damaged or of an unsupported kind; the message names it.
    """
    with path.open("rb") as file:
        start = file.read(6)
    images, reason = [], None
    if start == b"\x93NUMPY":
        images = [_map_npy(path)]
    elif start[:4] in TIFF_STARTS:
        by_pillow = not needs_tifffile(path)
        try:
            images = open_tiff(path, orientation=orientation, turned=Turned, by_pages=by_pillow)
        except NotInParts as error:
            reason = str(error)
        except ValueError:
            if not by_pillow:
                raise
            reason = "tifffile cannot read it"  # Pillow reads it, or says what is wrong
    else:
        reason = f"{path.suffix} files are compressed as a whole"
    if reason is not None:
        return [*read_arrays(path, orientation=orientation)], reason
    return [Mapped(image, lambda pixels: with_known_type(pixels, path)) for image in images], None


def stored_sizes(path: Path) -> list[tuple[int, int]]:
    """Returns (height, width) of the images in a file by its header, without decoding.

    Sizes of a turned image may be swapped. A file that cannot be read has none: reading it says
    why.
    """
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                return [_map_npy(path).shape[:2]]
            file.seek(0)
            sizes = []
            with Image.open(file) as image:
                for page in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
                    image.seek(page)
                    sizes.append((image.height, image.width))
            return sizes
    # Pillow and NumPy raise many kinds of errors; Pillow knows not all TIFFs.
    except Exception:
        return _tiff_sizes(path)


def _tiff_sizes(path: Path) -> list[tuple[int, int]]:
    try:
        with opened(path) as tiff:
            pages = [page.keyframe for page in tiff.pages]
            return [(page.imagelength, page.imagewidth) for page in pages]
    # tifffile raises many kinds of errors too; the reader names the damage when it reads the file.
    except Exception:
        return []


def blocks(image: Windows, side: int | None = None) -> Iterator[tuple[slice, slice]]:
    """Yields windows of `side` × `side` pixels (`BLOCK` by default) over an image, row by row."""
    side, (height, width) = side or BLOCK, image.shape[:2]
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def _map_npy(path: Path) -> Any:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy raises ValueError, EOFError, SyntaxError and more.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: damaged, cut short or no array of numbers ({reason:.200})"
        ) from error
    return check_npy(array, path)
