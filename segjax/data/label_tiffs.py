<<<<<<<< HEAD:segjax/data/tiff_tags.py
"""The kind of pixels in a page of a TIFF, by its tags: which reader keeps all of them."""
========
"""Label maps as TIFF files that keep the resolution and the place on the map of their images.
>>>>>>>> predict:segjax/data/label_tiffs.py

import re
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags

<<<<<<<< HEAD:segjax/data/tiff_tags.py
_NAMES = {1: "uint", 2: "int", 3: "float"}  # of SampleFormat
# Channels that a description announces: OME-XML, ImageJ's, and the JSON that tifffile writes.
_CHANNELS = re.compile(r'SizeC="(?!1")|^channels=(?!1\s*$)|"axes": "\w*C', re.MULTILINE)
_STACK = re.compile(r"^ImageJ=[\s\S]*^images=(\d+)", re.MULTILINE)
========
from segjax.data.orientation import QUARTER_TURNS, Orientation, tag_of

# ModelPixelScale, ModelTiepoint, ModelTransformation; GeoKeyDirectory, GeoDoubleParams,
# GeoAsciiParams; GDAL_METADATA, GDAL_NODATA.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
GDAL_METADATA, GDAL_NODATA = GEO_TAGS[-2:]

_X, _Y, _UNIT = (ExifTags.Base[name] for name in ("XResolution", "YResolution", "ResolutionUnit"))
_DESCRIPTION = ExifTags.Base.ImageDescription
_TYPES: dict[int, int] = {_X: 5, _Y: 5, _UNIT: 3, _DESCRIPTION: 2}  # rational, short, ASCII
>>>>>>>> predict:segjax/data/label_tiffs.py


def is_photograph(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow keeps all of a page: unsigned pixels of up to 16 bits without further bands.

    An alpha channel is no band. A fourth channel without a tag counts as alpha, because OpenCV
    writes alpha so. Of 16-bit CMYK, Pillow keeps 8 bits.
    """
<<<<<<<< HEAD:segjax/data/tiff_tags.py
    is_cmyk = tags.get(ExifTags.Base.PhotometricInterpretation) == 5
========

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
        values[_DESCRIPTION] = (tags.imagej or _ome_xml(labels, tags.ome)).encode("latin-1")
    directory = ImageFileDirectory_v2()
    for tag, value in values.items():
        directory.tagtype[tag], directory[tag] = _TYPES[tag], value
    for tag, (kind, value) in tags.geo.items():
        # Pillow reads text as Latin-1, and would write it as ASCII.
        value = value.encode("latin-1") if isinstance(value, str) else value
        directory.tagtype[tag], directory[tag] = kind, value
    image = Image.fromarray(labels)
    image.save(path, format="TIFF", tiffinfo=directory, compression="tiff_adobe_deflate")


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


def _ome_xml(labels: np.ndarray, sizes: dict[str, str]) -> str:
    """OME's description of a single page, as text in Latin-1 of the bytes in UTF-8."""
    height, width = labels.shape
    attributes = "".join(f' {name}="{value}"' for name, value in sizes.items())
>>>>>>>> predict:segjax/data/label_tiffs.py
    return (
        {*tags.get(ExifTags.Base.SampleFormat, (1,))} == {1}
        and max(tags.get(ExifTags.Base.BitsPerSample, (1,))) <= (8 if is_cmyk else 16)
        and 0 not in _extra_samples(tags)
    )


def is_grey_of_another_type(tags: Mapping[int, Any]) -> bool:
    """Whether a page is grey int16, int32 or float32, which Pillow keeps as well."""
    kind = (
        tags.get(ExifTags.Base.SamplesPerPixel, 1),
        tags.get(ExifTags.Base.PhotometricInterpretation),
        tags.get(ExifTags.Base.SampleFormat),
        tags.get(ExifTags.Base.BitsPerSample),
    )
    return kind in [(1, 1, (2,), (16,)), (1, 1, (2,), (32,)), (1, 1, (3,), (32,))]


def is_scrambled(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow or OpenCV changes a photograph's values or their places.

    OpenCV scrambles 16-bit colour that is turned or in planes. Pillow divides premultiplied colours
    by their alpha.
    """
    is_deep = max(tags.get(ExifTags.Base.BitsPerSample, (1,))) > 8
    is_odd = (
        tags.get(ExifTags.Base.Orientation, 1) != 1
        or tags.get(ExifTags.Base.PlanarConfiguration, 1) != 1
    )
    is_colour = tags.get(ExifTags.Base.SamplesPerPixel, 1) > 1
    return (is_deep and is_colour and is_odd) or 1 in _extra_samples(tags)


def pages_are_channels(description: str, pages: int) -> bool:
    """Whether a description says that pages are channels of an image, or that pages are hidden.

    ImageJ lists only the first page of a stack above 4 GB.
    """
    stack = _STACK.search(description)
    hidden = stack is not None and int(stack[1]) > pages
    return hidden or (pages > 1 and _CHANNELS.search(description) is not None)


def describe_pixels(tags: Mapping[int, Any]) -> str:
    """Names the bands and the type of a page: "5 bands of uint16"."""
    bands = tags.get(ExifTags.Base.SamplesPerPixel, 1)
    kind = _NAMES.get(tags.get(ExifTags.Base.SampleFormat, (1,))[0], "unknown")
    kind += str(tags.get(ExifTags.Base.BitsPerSample, (1,))[0])
    return f"{bands} band{'s' * (bands != 1)} of {kind}"


def _extra_samples(tags: Mapping[int, Any]) -> tuple[int, ...]:
    found = tags.get(ExifTags.Base.ExtraSamples, ())
    return found if isinstance(found, tuple) else (found,)
