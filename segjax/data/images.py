"""Reads photographs (PNG, JPEG, TIFF, BMP, GIF and WebP) and writes label maps.

Images with other bands or types of pixels are read by `segjax.data.image_arrays`.

Pillow decodes. It says what a file holds (mode, pages, palette, orientation) and raises an error
for a damaged one, whereas OpenCV returns the readable part of a truncated JPEG. But Pillow silently
reduces 16-bit colour to 8 bits, so OpenCV decodes those files.

The values are the file's own: neither colour profiles nor gamma are applied. Orientation tags are
applied by the rule of `segjax.data.orientation`.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from segjax.data.orientation import Orientation, tag_of, turn
from segjax.data.tiff_tags import describe_pixels, is_photograph
from segjax.messages.lists import few

# Pillow's limit protects servers from hostile uploads; a user's own scanned slide may exceed it.
Image.MAX_IMAGE_PIXELS = None

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
_EXPECTED = "expected 8- or 16-bit grey or RGB, 8-bit CMYK, or a palette"


def find_images(
    paths: str | Path | Iterable[str | Path], *, suffixes: Collection[str] = SUFFIXES
) -> list[Path]:
    """Lists the given image files and the images in the given folders.

    The suffix, in upper or lower case, identifies an image. Subfolders are not searched, because
    predictions are often written beside or below the images. A folder's images are in natural
    order (frame 2 before frame 10), without hidden files. The order of `paths` is kept, and a file
    named twice is listed once. `suffixes` are in lower case, such as `image_arrays.ARRAY_SUFFIXES`.

    Raises FileNotFoundError if a path does not exist, and ValueError for a file with another suffix
    or a folder without images.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    files = {}
    for path in map(Path, paths):
        for file in _images_in(path, suffixes) if path.is_dir() else [path]:
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file or folder")
            if file.suffix.lower() not in suffixes:
                raise ValueError(f"{file}: expected an image ({' '.join(suffixes)}) or a folder")
            files.setdefault(file.resolve(), file)
    return list(files.values())


def note_other_files(
    folder: Path,
    *,
    suffixes: Collection[str] = SUFFIXES,
    kind: str = "images",
    without: Collection[Path] = (),
) -> list[str]:
    """Counts the files of a folder that are skipped because of their suffix.

    Args:
      folder: the folder; subfolders and hidden files do not count.
      suffixes: the suffixes that are read, in lower case.
      kind: the word for files with these suffixes, in the sentence.
      without: files that do not count.

    Returns:
      One sentence, or none if no file is skipped or there is no such folder.
    """
    if not folder.is_dir():
        return []
    own = {path.resolve() for path in without}
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    others = [path for path in files if path.suffix.lower() not in suffixes]
    names = sorted(path.name for path in others if path.resolve() not in own)
    if not names:
        return []
    return [f"{len(names)} of {len(files)} files in {folder} are no {kind}, skipped: {few(names)}"]


def read_image(path: str | Path, *, orientation: Orientation = "upright") -> np.ndarray:
    """Reads the one image of a file, uint8 or uint16 [height, width, 1 (grey) or 3 (RGB)].

    - 16-bit files keep their 16 bits. Grey of 1, 2 or 4 bits is stretched to 0–255.
    - An opaque alpha channel is dropped. Any other fourth channel is refused: it may be
      transparency, a mask or a band of its own. Transparent colours and entries of a palette are
      refused where pixels have them.
    - CMYK becomes RGB by Pillow's formula, without a colour profile.
    - A palette becomes RGB, or grey if all its entries are grey (as in a GIF of a grey image). A
      TIFF in which 0 is white is inverted.
    - Orientation tags (EXIF, TIFF, XMP) are applied, so that the image is upright as in any viewer.
      With `orientation="stored"` they are ignored; see `segjax.data.orientation`.

    Raises ValueError, naming the file and the expected contents, if the file is empty, damaged, cut
    short or of another format, if its pixels are float, signed or 32-bit, if it has further bands
    or a further channel that is not opaque, or if it has several pages; `read_images` reads those.
    Raises FileNotFoundError if there is no file.
    """
    images = read_images(path, orientation=orientation)
    image = next(images)
    if next(images, None) is not None:
        raise ValueError(f"{path}: expected one image, found a TIFF with several pages")
    return image


def read_images(path: str | Path, *, orientation: Orientation = "upright") -> Iterator[np.ndarray]:
    """Yields the pages of a TIFF one by one, or the one image of any other file.

    Pages may differ in size. Pages that a TIFF marks as thumbnails, lower resolutions or masks of
    another page are left out. Pixels and errors are as in `read_image`.
    """
    return decode_pages(path, orientation=orientation)


def decode_pages(
    path: str | Path,
    *,
    orientation: Orientation = "upright",
    any_type: bool = False,
    only: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields what `read_images` yields, or more of a TIFF.

    With `any_type`, a TIFF may be grey of int16, int32 or float32, and alpha that is not opaque is
    the last band. With `only`, a number from 0, no other image is decoded.
    """
    path, number = Path(path), -1
    # Pillow gets an open file, not a path. From a path it maps uncompressed TIFFs to memory, and
    # swaps height and width if the orientation tag says so (seen in Pillow 13.0).
    with path.open("rb") as file:
        header = file.read(26)
        if not header:
            raise ValueError(f"{path}: the file is empty (0 bytes); {_EXPECTED}")
        file.seek(0)
        with _decoding(path):
            image = Image.open(file, formats=_FORMATS)
            # An MPO is a JPEG with more pictures after the first; phones write them.
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if pages > 1 and image.format != "TIFF":
            raise ValueError(f"{path}: expected a still image, found an animated {image.format}")
        for page in range(pages):
            with _decoding(path):
                image.seek(page)
                if isinstance(image, TiffImageFile):
                    if page and image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 0b101:
                        continue  # a lower resolution (bit 0) or a mask (bit 2) of another page
                    bits = max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
                    found = describe_pixels(image.tag_v2)
                    is_wrong = image.mode not in "IF" and not is_photograph(image.tag_v2)
                else:
                    found, is_wrong = "", False
                    bits = header[24] if image.format == "PNG" else 8  # depth in a PNG's IHDR
            number += 1
            if only not in (None, number):
                continue
            if is_wrong:  # Pillow would drop the other bands or the sign
                raise ValueError(f"{path}: {_EXPECTED}; found {found}")
            with _decoding(path):
                tag = tag_of(image)
            if bits > 8 and image.mode in ("RGB", "RGBA"):
                pixels = _colour_16_bit(image, path, page, tag, any_type=any_type)
                # Both libraries widen a PNG of grey with alpha (colour type 4) to colour.
                pixels = pixels[..., :1] if image.format == "PNG" and header[25] == 4 else pixels
            else:
                pixels = _grey_or_8_bit(image, path, any_type=any_type)
            # Pillow has turned a TIFF upright while loading it, and has removed its tag.
            is_upright = tag_of(image) == 1
            if is_upright == (orientation == "upright"):
                yield pixels
            else:
                yield turn(pixels, tag, back=is_upright)


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts an image [height, width, 1 or 3] to 1 or 3 channels and keeps its type.

    Grey is repeated. RGB becomes the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, which
    preserves the value of equal channels.
    """
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Writes integer labels [height, width] as a grey PNG whose pixel values are the labels.

    uint8 and bool take 8 bits, wider integers 16. The type decides, not the values, so all files of
    a set agree. The PNG has no palette, because OpenCV and other readers would return the colours
    instead of the labels.

    Raises ValueError if the path does not end in .png, or if labels are not a matrix of integers
    from 0 to 65535.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: labels are written as PNG; expected a name ending in .png")
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: expected integer labels [height, width], "
            f"found {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(
            f"{path}: expected labels from 0 to 65535, found {labels.min()} to {labels.max()}"
        )
    dtype = np.uint8 if labels.dtype.itemsize == 1 else np.uint16
    Image.fromarray(labels.astype(dtype)).save(path, format="PNG")


def natural(name: str) -> tuple:
    """Returns a key that sorts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(part) if part.isdecimal() else part for part in parts], name


def _images_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The images directly in a folder, in natural order; ValueError if there are none."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    files = [entry for entry in entries if entry.suffix.lower() in suffixes and not entry.is_dir()]
    if not files:
        subfolders = sorted(entry.name for entry in entries if entry.is_dir())
        hint = f"; it has folders, which are not searched: {', '.join(subfolders)}"
        raise ValueError(
            f"{folder}: expected images ({' '.join(suffixes)}) in this folder, found none"
            + (hint if subfolders else "")
        )
    return sorted(files, key=lambda file: natural(file.name))


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Adds the file's name and the expected contents to a decoder's error."""
    try:
        yield
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        reason = "cannot identify it" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{path}: damaged, cut short or of an unsupported kind ({reason}); {_EXPECTED}"
        ) from error


def _grey_or_8_bit(image: Image.Image, path: Path, *, any_type: bool) -> np.ndarray:
    """The pixels of an image that Pillow decodes without loss."""
    with _decoding(path):
        image.load()
    if any_type and isinstance(image, TiffImageFile) and image.mode in ("LA", "RGBA"):
        pixels = np.array(image)
        return pixels[..., :-1] if pixels[..., -1].min() == 255 else pixels
    match image.mode:
        case "1" | "L" | "LA":
            _check_opaque(image, path)
            return np.array(image.convert("L"))[..., None]
        case "RGB" | "RGBA" | "CMYK":
            _check_opaque(image, path)
            return np.array(image.convert("RGB"))
        case "P" | "PA":
            _check_opaque(image, path)
            palette = np.reshape(image.getpalette("RGB") or [], (-1, 3))
            channels = 1 if (palette == palette[:, :1]).all() else 3
            return np.array(image.convert("RGB"))[..., :channels]
        case "I;16" | "I;16B":
            grey = np.array(image).astype(np.uint16)[..., None]
            # Pillow inverts a TIFF with 0 for white (PhotometricInterpretation) in 8 bits only.
            inverted = isinstance(image, TiffImageFile) and (
                image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0
            )
            return 65535 - grey if inverted else grey
        case "F" | "I" if any_type and isinstance(image, TiffImageFile):
            bits = max(image.tag_v2[ExifTags.Base.BitsPerSample])
            return np.array(image, dtype=np.int16 if bits == 16 else None)[..., None]
        case mode:
            names = {"F": "float pixels", "I": "32-bit or signed integer pixels"}
            raise ValueError(f"{path}: {_EXPECTED}; found {names.get(mode, f'{mode} pixels')}")


def _check_opaque(image: Image.Image, path: Path) -> None:
    if "transparency" in image.info:  # a colour, or an alpha for each entry of a palette
        image = image.convert("RGBA")
    if "A" in image.getbands():
        _check_alpha(np.asarray(image.getchannel("A")), 255, path)


def _check_alpha(alpha: np.ndarray, opaque: int, path: Path) -> None:
    low, high = alpha.min(), alpha.max()
    if low < opaque:
        raise ValueError(
            f"{path}: expected an opaque image, found a further channel (alpha) with values from "
            f"{low} to {high} of {opaque}: transparency, a mask or a fourth band? Save the image "
            "without it"
        )


def _colour_16_bit(
    image: Image.Image, path: Path, page: int, tag: int, *, any_type: bool
) -> np.ndarray:
    """The stored pixels of 16-bit colour, decoded by OpenCV from the same page of the same file."""
    # OpenCV scrambles separate colour planes and fails on some orientations of a TIFF.
    if tag != 1 and isinstance(image, TiffImageFile):
        raise ValueError(
            f"{path}: expected a TIFF of 16-bit colour to be upright, found orientation {tag}"
        )
    planes = ExifTags.Base.PlanarConfiguration
    if isinstance(image, TiffImageFile) and image.tag_v2.get(planes, 1) != 1:
        raise ValueError(
            f"{path}: expected 16-bit colour to be stored pixel by pixel, found separate planes"
        )
    with _decoding(path):
        found, decoded = cv2.imreadmulti(str(path), page, 1, flags=cv2.IMREAD_UNCHANGED)
    if not found or decoded[0].dtype != np.uint16 or decoded[0].ndim != 3:
        raise ValueError(f"{path}: damaged, cut short or of an unsupported kind; {_EXPECTED}")
    if decoded[0].shape[2] > 3:
        if any_type and isinstance(image, TiffImageFile) and decoded[0][..., 3].min() < 65535:
            return decoded[0][..., [2, 1, 0, 3]]
        _check_alpha(decoded[0][..., 3], 65535, path)
    return decoded[0][..., [2, 1, 0]]
