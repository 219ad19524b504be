"""Reads a user's own images with any number of bands: photographs, TIFF and NumPy files.

Photographs and plain TIFFs are decoded by `segjax.data.images`, other TIFFs by `segjax.data.tiff`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags
from PIL.TiffImagePlugin import TiffImageFile

from segjax.data.images import SUFFIXES, decode_pages, match_channels
from segjax.data.orientation import Orientation
from segjax.data.tiff import find_images, opened, read_tiff
from segjax.data.tiff_tags import (
    is_grey_of_another_type,
    is_photograph,
    is_scrambled,
    pages_are_channels,
)

ARRAY_SUFFIXES = (*SUFFIXES, ".npy")

_NPY = b"\x93NUMPY"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
_MOST_CHANNELS = 16  # a first axis up to this length, shorter than the others, looks like channels


def read_array(path: str | Path, *, orientation: Orientation = "upright") -> np.ndarray:
    """Reads the one image of a file, [height, width, bands].

    Its type is uint8, uint16, int16, int32, uint32 or float32:

    - Integers of 8 to 32 bits keep their values; int8 becomes int16.
    - 64-bit integers become int32, and are refused if they do not fit.
    - float16, float64 and longer floats become float32, rounded. NaN and infinity are refused.
    - Bits and booleans become 0 and 255.

    The bands:

    - PNG, JPEG, BMP, GIF and WebP are read as by `images.read_image`, with 1 or 3 bands. Alpha that
      is not opaque is refused.
    - A NumPy file (.npy) holds [height, width] or [height, width, bands].
    - A TIFF has the bands that `segjax.data.tiff` describes. Grey and RGB are read without
      tifffile, but for RGB of 32 bits.

    Raises ValueError, naming the file, if it is damaged or empty, has other values, other axes or
    several pages, or if its reader is not installed. Raises FileNotFoundError if there is no file.
    """
    images = read_arrays(path, orientation=orientation)
    image = next(images)
    if next(images, None) is not None:
        raise ValueError(
            f"{path}: expected one image, found a TIFF with several pages; pages are read as bands "
            "only if the file says that they are channels (ImageJ, OME, or tifffile's axes CYX)"
        )
    return image


def read_arrays(
    path: str | Path, *, orientation: Orientation = "upright", only: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the images of a TIFF one by one, or the one image of any other file.

    Pixels and errors are as in `read_array`. With `only`, a number from 0, no other image of a TIFF
    is decoded; a file without such an image yields none.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(len(_NPY))
    if start == _NPY:
        images = iter([_read_npy(path)] if only in (None, 0) else [])
    elif start[:4] in TIFF_STARTS and needs_tifffile(path):
        images = read_tiff(path, orientation=orientation, only=only)
    else:
        images = decode_pages(path, orientation=orientation, any_type=True, only=only)
    return (with_known_type(image, path) for image in images)


def count_images(path: Path) -> int:
    """Counts the images that `read_arrays` yields, without decoding them.

    Raises ValueError, naming the file, or one of Pillow's many errors if it is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) not in TIFF_STARTS:
            return 1
    if needs_tifffile(path):
        with opened(path) as tiff:
            return sum(1 for _ in find_images(tiff, path))
    count = 0
    with path.open("rb") as file, TiffImageFile(file) as image:
        for page in range(image.n_frames):
            image.seek(page)
            count += not page or not image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 0b101
    return count


def for_network(image: np.ndarray, channels: int, *, path: Path) -> np.ndarray:
    """Converts an image to what networks read: uint8, uint16 or float32 of their channels.

    Other integers become float32, which holds them exactly up to 2**24. Grey and RGB become one
    another (`images.match_channels`).

    Args:
      image: [height, width, bands], as `read_array` returns it.
      channels: the number of channels.
      path: the file, for the error.

    Raises:
      ValueError: the image has another number of bands, and is not grey or RGB.
    """
    if image.dtype.name not in ("uint8", "uint16", "float32"):
        image = image.astype(np.float32)
    if image.shape[2] == channels:
        return image
    if {image.shape[2], channels} != {1, 3}:
        raise ValueError(f"{path}: {image.shape[2]} bands; expected {channels}, as in training")
    return match_channels(image, channels)


def _read_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    # NumPy raises ValueError, EOFError, SyntaxError and more.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: damaged, cut short or no array of numbers ({reason:.200})"
        ) from error
    return check_npy(array, path)


def check_npy(array: np.ndarray, path: Path) -> np.ndarray:
    """Returns the image of a NumPy file, [height, width, bands].

    Raises:
      ValueError: the array has another shape.
    """
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(
            f"{path}: expected an array [height, width] or [height, width, bands], found shape "
            f"{array.shape}"
        )
    if (
        array.ndim == 3
        and array.shape[0] <= _MOST_CHANNELS
        and array.shape[0] < min(array.shape[1:])
    ):
        raise ValueError(
            f"{path}: expected bands last, [height, width, bands]; the shape {array.shape} looks "
            "like [bands, height, width]. Save array.transpose(1, 2, 0)"
        )
    return array if array.ndim == 3 else array[..., None]


def needs_tifffile(path: Path) -> bool:
    """Whether Pillow and OpenCV would refuse a TIFF, drop bands of it or take channels for pages.

    True also for a file that Pillow cannot open. Damaged pixels are left to Pillow's errors.
    """
    try:
        with path.open("rb") as file, TiffImageFile(file) as image:
            pages = image.n_frames
            description = str(image.tag_v2.get(ExifTags.Base.ImageDescription, ""))
            if pages_are_channels(description, pages):
                return True
            for page in range(pages):
                image.seek(page)
                tags = image.tag_v2
                if page and tags.get(ExifTags.Base.NewSubfileType, 0) & 0b101:
                    continue
                is_known = is_photograph(tags) or is_grey_of_another_type(tags)
                if not is_known or is_scrambled(tags):
                    return True
    # Pillow raises OSError, SyntaxError, ValueError, struct.error and more.
    except Exception:
        return True
    return False


def with_known_type(image: np.ndarray, path: Path) -> np.ndarray:
    """Converts an image to one of the six types of `read_array`."""
    image = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    kind, size = image.dtype.kind, image.dtype.itemsize
    if kind == "b":
        return np.where(image, np.uint8(255), np.uint8(0))
    if kind in "iu" and size <= 4:
        return image.astype(np.int16) if image.dtype == np.int8 else image
    if kind in "iu":
        low, high = image.min(), image.max()
        limits = np.iinfo(np.int32)
        if low < limits.min or high > limits.max:
            raise ValueError(
                f"{path}: expected integers that fit 32 bits, found {image.dtype} from {low} to "
                f"{high}"
            )
        return image.astype(np.int32)
    if kind != "f":
        raise ValueError(f"{path}: expected integers or floats, found {image.dtype}")
    bad = int(image.size - np.isfinite(image).sum())
    if bad:
        raise ValueError(
            f"{path}: expected finite values, found NaN or infinity in {bad} of {image.size}"
        )
    with np.errstate(over="ignore"):
        single = image.astype(np.float32, copy=False)
    if not np.isfinite(single).all():
        raise ValueError(
            f"{path}: expected values that float32 holds, found {image.min()} to {image.max()}"
        )
    return single
