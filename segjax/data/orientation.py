"""The EXIF orientation of image files: one rule, and the notes and errors that name it.

Many cameras store the bitmap as the sensor lies and add a tag that says how to turn it. The rule:

- An image is turned upright as its tag says, as viewers show it. A mask is turned if it carries a
  tag of its own.
- Annotations belong to the upright image: masks, boxes, polygons, heights and widths.
- For annotations that were drawn on the stored bitmap, "stored" ignores all tags.

The tag may stand in EXIF, in a TIFF's own tags or in XMP. A tag of 180° or of a mirror image keeps
height and width, so no check can tell which bitmap was annotated. Therefore `note_turned` says what
the files carry.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from segjax.data.loading.ordered_map import map_in_threads

Orientation = Literal["upright", "stored"]

# Files whose tags are read for a note. Opening a file takes 0.1 ms from memory and 10 ms from a
# busy disk; more files would delay the start by minutes.
FILES_NOTED = 20_000

_UPRIGHT_OF_STORED = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
_INVERSE = {6: 8, 8: 6}  # every other tag is its own inverse
QUARTER_TURNS = (5, 6, 7, 8)
_TAGGED = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")
_PNG_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")


def tag_of(image: Image.Image) -> int:
    """The orientation tag of an image, 1 to 8; 1 also for no tag or an invalid one."""
    return _tag_in(image.getexif())


def turn(pixels: np.ndarray, tag: int, *, back: bool = False) -> np.ndarray:
    """Turns a stored bitmap [H, W, ...] upright by its tag, or with `back` an upright one back."""
    tag = _INVERSE.get(tag, tag) if back else tag
    return np.ascontiguousarray(_UPRIGHT_OF_STORED[tag](pixels)) if tag != 1 else pixels


def read_tag(path: Path) -> int:
    """Reads the orientation tag of an image file, 1 to 8, without decoding the pixels.

    The tag of a TIFF is that of its first page. A file that cannot be read has 1: reading its
    pixels says why.
    """
    if path.suffix.lower() not in _TAGGED:
        return 1
    try:
        with path.open("rb") as file:
            image = Image.open(file)
            # Pillow decodes a PNG to find tags behind the pixels, and so does `tag_of`.
            if isinstance(image, PngImageFile) and not _has_late_tags(file):
                return _tag_in(Image.Image.getexif(image))
            return tag_of(image)
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception:
        return 1


def note_turned(
    paths: Sequence[Path], *, orientation: Orientation = "upright", setting: str | None = None
) -> list[str]:
    """Counts the image files that carry an orientation tag, and says how they are read.

    Args:
      paths: the image files. At most `FILES_NOTED` are read, spread evenly.
      orientation: how they are read.
      setting: the setting that holds `orientation`, for the sentence; None if there is none.

    Returns:
      One sentence, or none if no file carries a tag.
    """
    places = np.linspace(0, len(paths) - 1, min(len(paths), FILES_NOTED)).astype(int)
    looked_at = [paths[place] for place in places]
    tags = dict(zip(looked_at, map_in_threads(read_tag, looked_at), strict=True))
    turned = [path for path, tag in tags.items() if tag != 1]
    if not turned:
        return []
    found = (
        f"{len(turned)} of {len(looked_at)} images"
        + " looked at" * (len(looked_at) < len(paths))
        + f" carry an EXIF orientation, such as {turned[0].name} ({tags[turned[0]]})"
    )
    if orientation == "stored":
        return [
            f"{found}: it is ignored, and masks, boxes and sizes belong to the stored bitmap "
            f"({setting})"
        ]
    switch = f"; for those of the stored bitmap, set {setting} to stored" if setting else ""
    return [
        f"{found}: they are turned upright, as viewers show them, and masks, boxes and sizes "
        f"belong to the upright image{switch}"
    ]


def explain_size(
    path: Path,
    found: tuple[int, ...],
    expected: tuple[int, ...],
    *,
    orientation: Orientation = "upright",
    setting: str | None = None,
) -> str:
    """Returns the end of an error if an orientation tag alone explains a wrong size.

    Args:
      path: the image file.
      found: its height and width as read.
      expected: the height and width of its annotations.
      orientation: how it was read.
      setting: the setting that holds `orientation`; None if there is none.
    """
    swapped = found != expected and found == expected[::-1]
    tag = read_tag(path) if swapped else 1
    if tag not in QUARTER_TURNS:
        return ""
    if orientation == "stored":
        return (
            f". The image carries EXIF orientation {tag} and was read as it is stored; drawn on "
            f"the upright image? Set {setting} to upright"
        )
    remedy = f"Set {setting} to stored" if setting else "Save the image upright, without the tag"
    return (
        f". The image carries EXIF orientation {tag} and was turned upright; drawn on the stored "
        f"bitmap? {remedy}"
    )


def _tag_in(exif: Image.Exif) -> int:
    tag = exif.get(ExifTags.Base.Orientation, 1)
    return tag if tag in _UPRIGHT_OF_STORED else 1


def _has_late_tags(file: BinaryIO) -> bool:
    """Whether a PNG has metadata that may hold an orientation behind its pixels."""
    file.seek(8)  # behind the signature
    in_pixels = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        in_pixels |= kind == b"IDAT"
        start = file.read(min(length, 32)) if kind in (b"iTXt", b"tEXt", b"zTXt") else b""
        if in_pixels and (kind == b"eXIf" or start.startswith(_PNG_TEXTS)):
            return True
        file.seek(length - len(start) + 4, 1)  # 4 bytes of checksum
    return False
