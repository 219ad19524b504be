"""The kind of pixels in a page of a TIFF, by its tags: which reader keeps all of them."""

import re
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags

_NAMES = {1: "uint", 2: "int", 3: "float"}  # of SampleFormat
# Channels that a description announces: OME-XML, ImageJ's, and the JSON that tifffile writes.
_CHANNELS = re.compile(r'SizeC="(?!1")|^channels=(?!1\s*$)|"axes": "\w*C', re.MULTILINE)
_STACK = re.compile(r"^ImageJ=[\s\S]*^images=(\d+)", re.MULTILINE)


def is_photograph(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow keeps all of a page: unsigned pixels of up to 16 bits without further bands.

    An alpha channel is no band. A fourth channel without a tag counts as alpha, because OpenCV
    writes alpha so. Of 16-bit CMYK, Pillow keeps 8 bits.
    """
    is_cmyk = tags.get(ExifTags.Base.PhotometricInterpretation) == 5
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
