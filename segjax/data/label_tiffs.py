"""Label maps as TIFF files that keep the resolution and the place on the map of their images.

Three kinds of tags are kept:

- XResolution, YResolution and ResolutionUnit.
- The pixel size in the ImageDescription of ImageJ (its unit) and of OME (PhysicalSizeX and Y). The
  rest of the description speaks of the image: its channels, its slices, its range of values.
- GeoTIFF's and GDAL's tags (`GEO_TAGS`), value by value. GDAL's no-data value is left out if it can
  be a label, and GDAL's metadata if they describe bands: statistics, offsets and scales of the
  image would be taken for those of the labels.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segjax.data.orientation import QUARTER_TURNS, Orientation, tag_of

# ModelPixelScale, ModelTiepoint, ModelTransformation; GeoKeyDirectory, GeoDoubleParams,
# GeoAsciiParams; GDAL_METADATA, GDAL_NODATA.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
GDAL_METADATA, GDAL_NODATA = GEO_TAGS[-2:]

_TILE = 512  # pixels on a side of the tiles of a large map
_CLASSIC = 2**32 - 2**25  # bytes that a TIFF of 32-bit offsets holds, with room for its tags
_X, _Y, _UNIT = (ExifTags.Base[name] for name in ("XResolution", "YResolution", "ResolutionUnit"))
_DESCRIPTION = ExifTags.Base.ImageDescription
_TYPES: dict[int, int] = {_X: 5, _Y: 5, _UNIT: 3, _DESCRIPTION: 2}  # rational, short, ASCII


@dataclass(frozen=True)
class PageTags:
    """What the label map of a page keeps.

    Attributes:
      resolution: pixels per unit along x and y, and TIFF's number of the unit; None if unknown.
      imagej: the lines of ImageJ's description that give the unit.
      ome: the attributes of OME's description that give the size of a pixel, by name.
      geo: (type, value) of GeoTIFF's and GDAL's tags, by number.
      left_out: what the label map does not keep, and why.
    """

    resolution: tuple[Any, Any, int] | None = None
    imagej: str = ""
    ome: dict[str, str] = field(default_factory=dict)
    geo: dict[int, tuple[int, Any]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __bool__(self):
        return bool(self.resolution or self.imagej or self.ome or self.geo)


def read_page_tags(
    path: Path, count: int, *, orientation: Orientation = "upright"
) -> list[PageTags]:
    """Reads the tags that the label maps of a TIFF's images keep, without decoding the pixels.

    If an orientation tag has turned the page by a quarter, the resolutions along x and y are
    exchanged. If it has turned or mirrored the page at all, the page loses its place on the map,
    because GDAL relates the place to the stored bitmap.

    Args:
      path: the file; one that is not named .tif or .tiff has no such tags.
      count: the number of images that are read from it. If it is not the number of pages, pages
        are bands of one image, and all images have the tags of the first.
      orientation: how its pages are read; see `segjax.data.orientation`.

    Returns:
      The tags of each image; an empty list for a file that Pillow cannot open.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        return []
    pages = []
    try:
        with path.open("rb") as file:
            image: Any = Image.open(file, formats=["TIFF"])
            described = _description(str(image.tag_v2.get(_DESCRIPTION, "")))
            for page in range(image.n_frames):
                image.seek(page)
                # As in `read_images`: no lower resolutions and masks of another page.
                if not page or not image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 0b101:
                    tag = tag_of(image) if orientation == "upright" else 1
                    pages.append(_turned(_read(image.tag_v2, described), tag))
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception:
        return []
    return pages if len(pages) == count else pages[:1] * count


def write_label_tiff(path: Path, labels: np.ndarray, tags: PageTags) -> None:
    """Writes a label map as a grey TIFF with the tags of its image.

    Args:
      path: the file.
      labels: integers from 0 to 65535, [height, width]; 8 bits for types of 8 bits, else 16.
      tags: the tags of the page that the labels belong to.
    """
    labels = labels.astype(np.uint8 if labels.dtype.itemsize == 1 else np.uint16)
    values: dict[int, Any] = {}
    if tags.resolution is not None:
        values |= dict(zip((_X, _Y, _UNIT), tags.resolution, strict=True))
    if tags.imagej or tags.ome:
        values[_DESCRIPTION] = (
            tags.imagej or _ome_xml(labels.shape, labels.dtype, tags.ome)
        ).encode("latin-1")
    directory = ImageFileDirectory_v2()
    for tag, value in values.items():
        directory.tagtype[tag], directory[tag] = _TYPES[tag], value
    for tag, (kind, value) in tags.geo.items():
        # Pillow reads text as Latin-1, and would write it as ASCII.
        value = value.encode("latin-1") if isinstance(value, str) else value
        directory.tagtype[tag], directory[tag] = kind, value
    image = Image.fromarray(labels)
    image.save(path, format="TIFF", tiffinfo=directory, compression="tiff_adobe_deflate")


def write_label_tiff_in_parts(
    path: Path, bands: Iterable[np.ndarray], size: tuple[int, int], dtype: Any, tags: PageTags
) -> None:
    """Writes a label map as it comes: a grey TIFF in compressed tiles, with the tags of its image.

    A map of 4 GB and more is a BigTIFF. An interrupted file has the suffix .part.

    Args:
      path: the file.
      bands: the rows of the map, [rows, width] bands.
      size: height and width.
      dtype: unsigned integers of 8, 16 or 32 bits.
      tags: the tags of the page that the labels belong to.

    Raises:
      ValueError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            f"{path}: tifffile writes large label maps; pip install 'segjax[tiff]'"
        ) from None
    dtype = np.dtype(dtype)
    options: dict[str, Any] = {}
    if tags.resolution is not None:
        x, y, unit = tags.resolution
        options |= {"resolution": (_ratio(x), _ratio(y)), "resolutionunit": unit}
    if tags.imagej or tags.ome:
        options["description"] = (tags.imagej or _ome_xml(size, dtype, tags.ome)).encode("latin-1")
    extra = []
    for tag, (kind, value) in tags.geo.items():
        if isinstance(value, str):
            value = value.encode("latin-1")
        is_text = isinstance(value, bytes)
        values = value if is_text or isinstance(value, tuple) else (value,)
        extra.append((tag, kind, len(values), values, True))
    part = path.with_name(f"{path.name}.part")
    large = size[0] * size[1] * dtype.itemsize >= _CLASSIC
    with tifffile.TiffWriter(part, bigtiff=large) as writer:
        writer.write(
            (tile.astype(dtype) for tile in _tiles(bands, size[1])),
            shape=size,
            dtype=dtype,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            software=False,
            metadata=None,
            extratags=extra,
            **options,
        )
    part.replace(path)


def _tiles(bands: Iterable[np.ndarray], width: int) -> Iterator[np.ndarray]:
    """Cuts bands of any heights into tiles, row by row; zeros fill the last ones."""
    rows = np.zeros((0, width), np.uint8)
    for band in chain(bands, (None,)):
        rows = rows if band is None else np.concatenate([rows, band])
        while len(rows) >= _TILE or (band is None and len(rows)):
            for left in range(0, width, _TILE):
                tile = rows[:_TILE, left : left + _TILE]
                room = [(0, _TILE - length) for length in tile.shape]
                yield np.pad(tile, room)
            rows = rows[_TILE:]


def _ratio(value: Any) -> Any:
    """A resolution as numerator and denominator, if it is a fraction."""
    if hasattr(value, "numerator") and hasattr(value, "denominator"):
        return int(value.numerator), int(value.denominator)
    return float(value)


def _read(tags, description: PageTags) -> PageTags:
    geo, left_out = {}, []
    for tag in GEO_TAGS:
        if tag not in tags:
            continue
        if tag == GDAL_NODATA and _may_be_label(tags[tag]):
            left_out.append("GDAL's no-data value (it can be a label)")
        elif tag == GDAL_METADATA and re.search(r"\bsample\s*=", str(tags[tag])):
            left_out.append("GDAL's metadata (they describe the image's bands)")
        else:
            geo[tag] = (tags.tagtype[tag], tags[tag])
    resolution = _resolution(tags)
    if resolution == (1, 1, 1) and not description:
        resolution = None  # one pixel per nothing, as tifffile writes it
    return replace(description, resolution=resolution, geo=geo, left_out=tuple(left_out))


def _resolution(tags) -> tuple[Any, Any, int] | None:
    x, y, unit = tags.get(_X), tags.get(_Y), tags.get(_UNIT, 2)
    if x is None or y is None:
        return None
    valid = all(math.isfinite(value) and value > 0 for value in (float(x), float(y)))
    return (x, y, unit) if valid else None


def _may_be_label(value: str) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return number.is_integer() and 0 <= number <= 65535


def _description(text: str) -> PageTags:
    """Reads the unit or the pixel size of all pages from the first page's description."""
    if text.startswith("ImageJ="):
        lines = [x for x in text.splitlines() if x.startswith(("ImageJ=", "unit=", "yunit="))]
        units = [line.partition("=")[0] for line in lines[1:]]
        return PageTags(imagej="".join(f"{line}\n" for line in lines) if units == ["unit"] else "")
    found = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", text)
    if len(found) != 1:  # no OME, or several images of sizes of their own
        return PageTags()
    sizes = dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)\s*=\s*"([^"<&]*)"', found[0]))
    return PageTags(ome=sizes if {"PhysicalSizeX", "PhysicalSizeY"} <= sizes.keys() else {})


def _turned(tags: PageTags, tag: int) -> PageTags:
    """The tags of a page that was turned upright by its orientation tag."""
    if tag == 1:
        return tags
    if tags.geo:
        reason = "the place on the map, which is that of the stored bitmap"
        tags = replace(tags, geo={}, left_out=(*tags.left_out, reason))
    if tag not in QUARTER_TURNS:
        return tags
    exchanged = {"X": "Y", "Y": "X"}
    ome = {
        re.sub("(?<=PhysicalSize)[XY]", lambda found: exchanged[found[0]], name): value
        for name, value in tags.ome.items()
    }
    if tags.resolution is None:
        return replace(tags, ome=ome)
    x, y, unit = tags.resolution
    return replace(tags, ome=ome, resolution=(y, x, unit))


def _ome_xml(size: Sequence[int], dtype: np.dtype, sizes: dict[str, str]) -> str:
    """OME's description of a single page, as text in Latin-1 of the bytes in UTF-8."""
    height, width = size
    attributes = "".join(f' {name}="{value}"' for name, value in sizes.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        f'Type="{dtype.name}" SizeX="{width}" SizeY="{height}" SizeC="1" SizeZ="1" '
        f'SizeT="1"{attributes}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
