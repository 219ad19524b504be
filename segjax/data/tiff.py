"""Reads a TIFF of any bands and types with tifffile (`pip install 'segjax[tiff]'`).

Which axis is what:

- The samples of a page are bands, interleaved or in separate planes.
- Every page is an image of its own. Only if OME-XML, ImageJ or tifffile's own description says
  that an axis is channels (C), those pages are joined to bands. Their other axes (Z, T) are images,
  in the file's order.
- Any other axis is refused, and so are samples beside channels.
- Alpha is dropped where it is opaque. Elsewhere it is a band: GDAL marks the fourth of four bands
  of 8 bits as alpha.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.orientation import Orientation, turn

_ORIENTATION = 274  # the number of the tag
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 0, 1, 2, 6  # PhotometricInterpretation
_JPEG = 7  # Compression; its decoder turns YCbCr into RGB
_ALPHAS = (1, 2)  # ExtraSamples: associated and unassociated alpha
_INSTALL = "pip install 'segjax[tiff]'"


@dataclass(frozen=True, eq=False)
class TiffImage:
    """An image of an open TIFF that is not decoded yet.

    Attributes:
      pages: the one page that holds all bands, or a page of each band; none if only the whole
        series can be decoded.
      axes: those of what is decoded, such as YXS; YX for pages of single bands.
      keyframe: the page whose tags describe the pixels.
      decode: decodes an image without pages.
    """

    pages: tuple[Any, ...]
    axes: str
    keyframe: Any
    decode: Callable[[], np.ndarray] | None = None

    def read(self) -> np.ndarray:
        """Decodes the stored pixels, [height, width, bands]."""
        if self.decode is not None:
            return bands_last(self.decode(), self.axes)
        first, *others = self.pages
        if others:
            return np.stack([page.asarray() for page in self.pages], axis=-1)
        return bands_last(first.asarray().reshape(_page_shape(first, self.axes)), self.axes)


def read_tiff(
    path: Path, *, orientation: Orientation = "upright", only: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the images [height, width, bands] of a TIFF in the file's own type.

    Thumbnails, lower resolutions and masks are left out. Where 0 is white, unsigned integers are
    inverted. With `only`, a number from 0, no other image is decoded.

    Raises ValueError, naming the file, if it is damaged, if tifffile or a codec is not installed,
    if an axis is ambiguous, or if pixels are indices of a palette or another kind of colour.
    """
    with opened(path) as tiff:
        for number, image in enumerate(find_images(tiff, path)):
            if only not in (None, number):
                continue
            with decoding(path):
                pixels = image.read()
            pixels = finish(pixels, image.keyframe, path)
            tag = orientation_of(image.keyframe) if orientation == "upright" else 1
            yield turn(pixels, tag)


def opened(path: Path) -> Any:
    """Opens a TIFF with tifffile, as a context manager."""
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            f"{path}: damaged, cut short, or a TIFF that only tifffile reads (for its bands, "
            f"pixels or compression); to install it: {_INSTALL}"
        ) from None
    with decoding(path):
        return tifffile.TiffFile(path)


def find_images(tiff: Any, path: Path, *, by_pages: bool = False) -> Iterator[TiffImage]:
    """Yields the images of an open TIFF; errors are those of `read_tiff`.

    With `by_pages`, each page is an image, whatever a description says.
    """
    with decoding(path):
        is_described = not by_pages and (tiff.is_ome or tiff.is_imagej)
        is_described |= not by_pages and tiff.is_shaped and "C" in tiff.series[0].axes
    yield from (_in_series if is_described else _in_pages)(tiff, path)


def orientation_of(page: Any) -> int:
    """The orientation tag of a page, 1 to 8; 1 for no tag or an invalid one."""
    tag = page.tags.valueof(_ORIENTATION, 1)
    return tag if tag in range(2, 9) else 1


def _in_pages(tiff: Any, path: Path) -> Iterator[TiffImage]:
    """Every page as an image."""
    for number in range(len(tiff.pages)):
        with decoding(path):
            page = tiff.pages[number]
            if number and page.subfiletype & 0b101:
                continue  # a lower resolution (bit 0) or a mask (bit 2) of another page
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(
                f"{path}: expected pages of height, width and bands (axes YX, YXS or SYX), found "
                f"axes {page.axes} of lengths {page.shape}"
            )
        _check_length(page, tiff, path)
        yield TiffImage((page,), page.axes, page)


def _in_series(tiff: Any, path: Path) -> Iterator[TiffImage]:
    """The images of the one series that a description announces."""
    with decoding(path):
        found = tiff.series
        series = found[0]
        pages = [*series.pages]
    if len(found) > 1:
        kinds = ", ".join(f"{each.axes} {each.shape}" for each in found[:4])
        raise ValueError(f"{path}: expected one series of images, found {len(found)}: {kinds}")
    axes = series.axes
    if {*axes} - {*"YXSCZTIQ"} or not {*axes} >= {*"YX"} or {*axes} >= {*"CS"}:
        raise ValueError(
            f"{path}: expected the axes Y, X and at most one of bands (C or S), and Z or T for "
            f"more images; found axes {axes} of lengths {series.shape}"
        )
    if any(page is None or page.parent is not tiff for page in pages):
        raise ValueError(
            f"{path}: expected all planes of the OME-TIFF in this file; some are missing or in "
            "other files. Save each image in one file"
        )
    for page in pages:
        _check_length(page, tiff, path)
    inner = _axes_within(series, pages)
    if inner is None:
        yield from _of_whole_series(tiff, series, path)
        return
    outer = axes[: len(axes) - len(inner)]
    order = sorted(range(len(outer)), key=lambda place: outer[place] == "C")  # bands last
    numbers = np.arange(len(pages)).reshape(series.shape[: len(outer)]).transpose(order)
    for of_image in numbers.reshape(-1, series.shape[outer.index("C")] if "C" in outer else 1):
        yield TiffImage(tuple(pages[i] for i in of_image.tolist()), inner, series.keyframe)


def _axes_within(series: Any, pages: list) -> str | None:
    """The axes of a single page in a series; None if pages and axes do not match.

    ImageJ lists only the first page of a stack above 4 GB.
    """
    for first in range(len(series.axes)):
        if math.prod(series.shape[first:]) == math.prod(pages[0].shape):
            inner = series.axes[first:]
            fits = math.prod(series.shape[:first]) == len(pages)
            alone = not {*inner} - {*"YXSC"} and not ("C" in inner and "C" in series.axes[:first])
            return inner if fits and alone and {*inner} >= {*"YX"} else None
    return None


def _of_whole_series(tiff: Any, series: Any, path: Path) -> Iterator[TiffImage]:
    """The images of a series that is decoded at once, or mapped to memory if it is stored so."""
    axes = series.axes
    others = [axis for axis in axes if axis not in "YXSC"]
    order = [axes.index(axis) for axis in others]
    order += [place for place, axis in enumerate(axes) if axis in "YXSC"]
    inner = "".join(axis for axis in axes if axis in "YXSC")

    @cache
    def stack() -> np.ndarray:
        with decoding(path):
            if series.dataoffset is not None:
                kind = np.dtype(tiff.byteorder + series.dtype.char)
                array = np.memmap(
                    path, kind, "r", offset=series.dataoffset, shape=tuple(series.shape)
                )
            else:
                array = series.asarray()
        array = array.transpose(order)
        return array.reshape(-1, *array.shape[len(others) :])

    for number in range(math.prod(series.shape[axes.index(axis)] for axis in others)):
        yield TiffImage((), inner, series.keyframe, lambda number=number: stack()[number])


def _page_shape(page: Any, axes: str) -> tuple[int, ...]:
    """The shape of a page with these axes; a series may leave out axes of length 1."""
    keyframe = page.keyframe
    lengths = {"Y": keyframe.imagelength, "X": keyframe.imagewidth}
    return tuple(lengths.get(axis, keyframe.samplesperpixel) for axis in axes)


def bands_last(image: np.ndarray, axes: str) -> np.ndarray:
    """Brings an image with axes Y, X and perhaps C or S to [H, W, bands]."""
    if len(axes) == 2:
        image, axes = image[..., None], axes + "S"
    bands = 3 - axes.index("Y") - axes.index("X")
    return image.transpose(axes.index("Y"), axes.index("X"), bands)


def _check_length(page: Any, tiff: Any, path: Path) -> None:
    """Raises ValueError if a page is empty or its pixels lie behind the end of the file.

    Of strips or tiles that are not listed, tifffile would make zeros.
    """
    with decoding(path):
        if 0 in page.shape:
            raise ValueError(f"a page of shape {page.shape}")
        expected = math.prod(page.chunked)
        if len(page.dataoffsets) != expected:
            raise ValueError(f"{len(page.dataoffsets)} of {expected} strips or tiles")
        ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if ends and max(ends) > tiff.filehandle.size:
            raise ValueError(
                f"pixels up to byte {max(ends)}, the file ends at {tiff.filehandle.size}"
            )


def finish(pixels: np.ndarray, page: Any, path: Path) -> np.ndarray:
    """Inverts pixels of which 0 is white, drops opaque alpha, and refuses other kinds of colour."""
    if not (is_inverted(page, pixels.dtype) or is_grey_or_rgb(page)):
        raise ValueError(
            f"{path}: expected grey, RGB or bands, found pixels of kind {kind_of(page)} and type "
            f"{pixels.dtype}"
        )
    if is_inverted(page, pixels.dtype):
        pixels = ~pixels
    place = alpha_band(page, pixels.shape[2])
    if place is not None and pixels[..., place].min() == opaque(pixels.dtype):
        pixels = np.delete(pixels, place, axis=2)
    return pixels


def kind_of(page: Any) -> str:
    """The name of a page's kind of colour."""
    return str(getattr(page.photometric, "name", page.photometric))


def is_grey_or_rgb(page: Any) -> bool:
    """Whether 0 is black in a page, or it is RGB when decoded."""
    photometric = int(page.photometric)
    is_jpeg = photometric == _YCBCR and page.compression == _JPEG
    return is_jpeg or photometric in (_MIN_IS_BLACK, _RGB)


def is_inverted(page: Any, dtype: np.dtype) -> bool:
    """Whether 0 is white in a page of unsigned integers."""
    return int(page.photometric) == _MIN_IS_WHITE and dtype.kind in "bu"


def alpha_band(page: Any, bands: int) -> int | None:
    """The number of the band that is alpha; None without one."""
    extra = [int(each) for each in page.extrasamples or ()]
    if not {*extra} & {*_ALPHAS} or len(extra) >= bands:
        return None
    return bands - len(extra) + next(i for i, kind in enumerate(extra) if kind in _ALPHAS)


def opaque(dtype: np.dtype) -> int:
    """The value of an opaque alpha."""
    return np.iinfo(dtype).max if dtype.kind in "iu" else 1


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Adds the file's name to an error of tifffile or a codec."""
    try:
        yield
    # tifffile raises TiffFileError, ValueError, struct.error, zlib.error and more.
    except Exception as error:
        reason = " ".join(str(error).split())
        if "imagecodecs" in reason:
            raise ValueError(f"{path}: {reason}; to install it: {_INSTALL}") from error
        raise ValueError(
            f"{path}: damaged, cut short or of an unsupported kind ({reason:.200})"
        ) from error
