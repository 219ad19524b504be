"""Reads windows of a TIFF that is larger than memory, with tifffile.

The pixels are those of `segjax.data.image_arrays`. Only the tiles or strips under a window are
decoded. The last ones stay decoded, up to `CACHE_BYTES`, because neighbouring windows share them.
Uncompressed pages in one piece are mapped to memory instead.

These pages are decoded as a whole: indices of a palette, CMYK and other kinds of colour, 2 or 4
bits, a fourth channel without a meaning, and pixels compressed in one huge strip.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.orientation import Orientation, turn
from segjax.data.tiff import (
    TiffImage,
    alpha_band,
    bands_last,
    decoding,
    find_images,
    is_grey_or_rgb,
    is_inverted,
    kind_of,
    opaque,
    opened,
    orientation_of,
)

CACHE_BYTES = 2**28  # two rows of tiles of 512 pixels in an RGB image 80,000 pixels wide
LARGEST_SEGMENT = 2**26  # pixels; a larger strip is nearly the image itself
_BLOCK = 1024  # rows and columns that are read at once to look through an image


class NotInParts(Exception):
    """A TIFF that must be decoded as a whole; the message says why."""


class Segments:
    """Decoded tiles and strips of a file, of which the last ones used are kept.

    Args:
      path: the file.
      capacity: bytes of pixels to keep.
    """

    def __init__(self, path: Path, capacity: int = CACHE_BYTES):
        self._path = path
        self._capacity = capacity
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def get(self, offset: int, count: int, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        """Returns the segment at these bytes of the file, decoded."""
        if offset in self._kept:
            self._kept.move_to_end(offset)
            return self._kept[offset]
        with decoding(self._path), self._path.open("rb") as file:
            file.seek(offset)
            pixels = decode(file.read(count))
        self._kept[offset] = pixels
        self._bytes += pixels.nbytes
        while self._bytes > self._capacity and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return pixels


@dataclass(frozen=True, eq=False)
class Page:
    """The pixels of a page, read in windows: `page[rows, columns]` is [h, w, samples].

    Attributes:
      shape: height, width and samples.
      dtype: the type of the pixels.
      segment: height and width of a tile or strip.
      planes: the number of separate planes: 1, or as many as samples.
      offsets, counts: the places of the segments in the file, and their bytes.
      decode: (bytes, number of the segment) → [h, w, samples in a segment].
      segments: the segments of the file.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    segment: tuple[int, int]
    planes: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    decode: Callable[[bytes, int], np.ndarray]
    segments: Segments

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (
            range(*each.indices(length)) for each, length in zip(window, self.shape, strict=False)
        )
        result = np.zeros((len(rows), len(columns), self.shape[2]), self.dtype)
        if not result.size:
            return result
        height, width = self.segment
        down, across = -(-self.shape[0] // height), -(-self.shape[1] // width)
        for plane in range(self.planes):
            bands = slice(plane, plane + 1) if self.planes > 1 else slice(None)
            for y in range(rows.start // height, (rows.stop - 1) // height + 1):
                for x in range(columns.start // width, (columns.stop - 1) // width + 1):
                    pixels = self._segment((plane * down + y) * across + x)
                    top, left = y * height, x * width
                    first, start = max(rows.start, top), max(columns.start, left)
                    last = min(rows.stop, top + height)
                    stop = min(columns.stop, left + width)
                    result[
                        first - rows.start : last - rows.start,
                        start - columns.start : stop - columns.start,
                        bands,
                    ] = pixels[first - top : last - top, start - left : stop - left]
        return result

    def _segment(self, number: int) -> np.ndarray:
        offset, count = self.offsets[number], self.counts[number]
        return self.segments.get(offset, count, lambda data: self.decode(data, number))


@dataclass(frozen=True, eq=False)
class Bands:
    """An image of a TIFF in windows, [h, w, bands], with the meaning of its tags applied.

    Attributes:
      pages: arrays or `Page`s whose samples are the bands, one after the other.
      inverted: whether 0 is white.
      dropped: a band to leave out.
    """

    pages: tuple[Any, ...]
    inverted: bool = False
    dropped: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        bands = sum(page.shape[2] for page in self.pages) - (self.dropped is not None)
        return (*self.pages[0].shape[:2], bands)

    @property
    def dtype(self) -> np.dtype:
        return self.pages[0].dtype

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        parts = [np.asarray(page[window]) for page in self.pages]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        pixels = ~pixels if self.inverted else pixels
        return pixels if self.dropped is None else np.delete(pixels, self.dropped, axis=2)

    def is_opaque(self, band: int) -> bool:
        """Whether a band is an alpha that is opaque everywhere; reads the whole image."""
        height, width, _ = self.shape
        lowest = opaque(self.dtype)
        for top in range(0, height, _BLOCK):
            for left in range(0, width, _BLOCK):
                seen = self[top : top + _BLOCK, left : left + _BLOCK][..., band]
                lowest = min(lowest, seen.min())
        return lowest == opaque(self.dtype)


def open_tiff(
    path: Path, *, orientation: Orientation, turned: Callable, by_pages: bool
) -> list[Any]:
    """Opens the images of a TIFF for reading in windows.

    Args:
      path: the file.
      by_pages: whether each page is an image, whatever a description says.
      orientation: how images with an orientation tag are read.
      turned: (image, function that turns arrays) → image; `image_windows.Turned`.

    Raises:
      NotInParts: the file must be decoded as a whole.
      ValueError: the file is damaged or of an unsupported kind; the message names it.
    """
    images, segments = [], Segments(path)
    with opened(path) as tiff:
        for found in find_images(tiff, path, by_pages=by_pages):
            page = found.keyframe
            _check_kind(page)
            with decoding(path):
                parts = _parts(found, path, segments)
            image = Bands(parts, is_inverted(page, parts[0].dtype))
            alpha = alpha_band(page, image.shape[2])
            if alpha is not None and image.is_opaque(alpha):
                image = replace(image, dropped=alpha)
            tag = orientation_of(page) if orientation == "upright" else 1
            images.append(image if tag == 1 else turned(image, _turn_by(tag)))
    return images


def _check_kind(page: Any) -> None:
    """Raises NotInParts for pixels that Pillow converts as it decodes."""
    if not (is_grey_or_rgb(page) or is_inverted(page, np.dtype(page.dtype or np.uint8))):
        raise NotInParts(f"its pixels are of kind {kind_of(page)}")
    if page.bitspersample not in (1, 8, 16, 32, 64):
        raise NotInParts(f"it has {page.bitspersample} bits a sample")
    meant = (3 if kind_of(page) in ("RGB", "YCBCR") else 1) + len(page.extrasamples or ())
    if page.samplesperpixel > meant:
        raise NotInParts("it has a channel without a meaning")


def _parts(image: TiffImage, path: Path, segments: Segments) -> tuple[Any, ...]:
    """The arrays or pages whose samples are the bands of an image."""
    if image.decode is not None:
        array = image.decode()  # mapped to memory, if the file allows it
        if not isinstance(array, np.memmap):
            raise NotInParts("its pages are only decoded together")
        return (bands_last(array, image.axes),)
    return tuple(_part(page, path, segments) for page in image.pages)


def _part(page: Any, path: Path, segments: Segments) -> Any:
    keyframe = page.keyframe
    is_separate = keyframe.planarconfig == 2 and keyframe.samplesperpixel > 1
    height, width = keyframe.imagelength, keyframe.imagewidth
    samples = keyframe.samplesperpixel
    if page.is_final and keyframe.dtype.itemsize > 0 and not keyframe.is_tiled:
        kind = np.dtype(page.parent.byteorder + keyframe.dtype.char)
        shape = (samples, height, width) if is_separate else (height, width, samples)
        array = np.memmap(path, kind, "r", offset=page.dataoffsets[0], shape=shape)
        return array.transpose(1, 2, 0) if is_separate else array
    if keyframe.is_tiled:
        segment = keyframe.tilelength, keyframe.tilewidth
    else:
        segment = min(keyframe.rowsperstrip, height), width
    if segment[0] * segment[1] > LARGEST_SEGMENT:
        raise NotInParts(f"it is compressed in pieces of {segment[0]} × {segment[1]} pixels")
    options: dict[str, Any] = {"_fullsize": keyframe.is_tiled}
    if keyframe.compression in (6, 7, 34892, 33007):  # kinds of JPEG
        options |= {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    decode = keyframe.decode

    def decode_segment(data: bytes, number: int) -> np.ndarray:
        pixels = decode(data or None, number, **options)[0]
        if pixels is None:  # a sparse file leaves out segments
            bands = 1 if is_separate else samples
            return np.full((*segment, bands), keyframe.nodata, keyframe.dtype)
        return pixels[0]

    return Page(
        shape=(height, width, samples),
        dtype=np.dtype(keyframe.dtype),
        segment=segment,
        planes=samples if is_separate else 1,
        offsets=tuple(page.dataoffsets),
        counts=tuple(page.databytecounts),
        decode=decode_segment,
        segments=segments,
    )


def _turn_by(tag: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: turn(pixels, tag)
