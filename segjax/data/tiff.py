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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from segjax.data.orientation import Orientation, turn

_ORIENTATION = 274  # the number of the tag
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 0, 1, 2, 6  # PhotometricInterpretation
_JPEG = 7  # Compression; its decoder turns YCbCr into RGB
_ALPHAS = (1, 2)  # ExtraSamples: associated and unassociated alpha
_INSTALL = "pip install 'segjax[tiff]'"


def read_tiff(path: Path, *, orientation: Orientation = "upright") -> Iterator[np.ndarray]:
    """Yields the images [height, width, bands] of a TIFF in the file's own type.

    Thumbnails, lower resolutions and masks are left out. Where 0 is white, unsigned integers are
    inverted.

    Raises ValueError, naming the file, if it is damaged, if tifffile or a codec is not installed,
    if an axis is ambiguous, or if pixels are indices of a palette or another kind of colour.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            f"{path}: damaged, cut short, or a TIFF that only tifffile reads (for its bands, "
            f"pixels or compression); to install it: {_INSTALL}"
        ) from None
    with _decoding(path):
        tiff = tifffile.TiffFile(path)
    with tiff:
        with _decoding(path):
            is_described = tiff.is_ome or tiff.is_imagej
            is_described = is_described or (tiff.is_shaped and "C" in tiff.series[0].axes)
        for pixels, page in (_in_series if is_described else _in_pages)(tiff, path):
            pixels = _finish(pixels, page, path)
            tag = page.tags.valueof(_ORIENTATION, 1)
            is_turned = orientation == "upright" and tag in range(2, 9)
            yield turn(pixels, tag) if is_turned else pixels


def _in_pages(tiff: Any, path: Path) -> Iterator[tuple[np.ndarray, Any]]:
    """Every page as an image [H, W, samples], with the page."""
    for number in range(len(tiff.pages)):
        with _decoding(path):
            page = tiff.pages[number]
            if number and page.subfiletype & 0b101:
                continue  # a lower resolution (bit 0) or a mask (bit 2) of another page
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ValueError(
                f"{path}: expected pages of height, width and bands (axes YX, YXS or SYX), found "
                f"axes {page.axes} of lengths {page.shape}"
            )
        _check_length(page, tiff, path)
        with _decoding(path):
            yield _bands_last(page.asarray(), page.axes), page


def _in_series(tiff: Any, path: Path) -> Iterator[tuple[np.ndarray, Any]]:
    """The images [H, W, bands] of the one series that a description announces."""
    with _decoding(path):
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
    with _decoding(path):
        array = series.asarray()
    others = [axis for axis in axes if axis not in "YXSC"]
    order = [axes.index(axis) for axis in others]
    order += [place for place, axis in enumerate(axes) if axis in "YXSC"]
    array = array.transpose(order).reshape(-1, *np.array(array.shape)[order[len(others) :]])
    for image in array:
        yield _bands_last(image, "".join(axis for axis in axes if axis in "YXSC")), series.keyframe


def _bands_last(image: np.ndarray, axes: str) -> np.ndarray:
    """Brings an image with axes Y, X and perhaps C or S to [H, W, bands]."""
    if len(axes) == 2:
        image, axes = image[..., None], axes + "S"
    bands = 3 - axes.index("Y") - axes.index("X")
    return image.transpose(axes.index("Y"), axes.index("X"), bands)


def _check_length(page: Any, tiff: Any, path: Path) -> None:
    """Raises ValueError if a page is empty or its pixels lie behind the end of the file.

    Of strips or tiles that are not listed, tifffile would make zeros.
    """
    with _decoding(path):
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


def _finish(pixels: np.ndarray, page: Any, path: Path) -> np.ndarray:
    """Inverts pixels of which 0 is white, drops opaque alpha, and refuses other kinds of colour."""
    photometric, kind = int(page.photometric), pixels.dtype.kind
    is_rgb = photometric == _RGB or (photometric == _YCBCR and page.compression == _JPEG)
    is_inverted = photometric == _MIN_IS_WHITE and kind in "bu"
    if not (is_rgb or is_inverted or photometric == _MIN_IS_BLACK):
        name = getattr(page.photometric, "name", photometric)
        raise ValueError(
            f"{path}: expected grey, RGB or bands, found pixels of kind {name} and type "
            f"{pixels.dtype}"
        )
    if is_inverted:
        pixels = ~pixels
    extra = [int(each) for each in page.extrasamples or ()]
    if {*extra} & {*_ALPHAS} and len(extra) < pixels.shape[2]:
        place = pixels.shape[2] - len(extra) + next(i for i, x in enumerate(extra) if x in _ALPHAS)
        opaque = np.iinfo(pixels.dtype).max if kind in "iu" else 1
        if pixels[..., place].min() == opaque:
            pixels = np.delete(pixels, place, axis=2)
    return pixels


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
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
