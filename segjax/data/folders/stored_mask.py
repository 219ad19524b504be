"""Reads a mask file as it is stored: class or object numbers, palette indices, or colours."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from segjax.data.orientation import Orientation, tag_of, turn

EXPECTED = (
    "expected a mask: class numbers, object numbers or colours, as PNG, TIFF, GIF, BMP or .npy"
)


def read_stored_mask(
    path: Path, *, page: int = 0, orientation: Orientation = "upright"
) -> np.ndarray:
    """Reads the stored values of a mask.

    - Grey of 1 to 32 bits and .npy files give their numbers, and palette images their indices.
      A grey PNG of 2 or 4 bits gives 0 to 3 or 0 to 15. Floats that are whole numbers count.
    - Colour gives colours; it counts as grey if red, green and blue are equal everywhere.
    - An opaque alpha channel is dropped. If all colours are the same and alpha has two values, the
      alpha channel is the mask.

    Args:
      path: the file.
      page: the page of a TIFF.
      orientation: whether an orientation tag is applied; see `segjax.data.orientation`.

    Returns:
      int32 [H, W], or uint8 [H, W, 3] for colours.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is unreadable, or its pixels are no mask; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _whole(_read_array(path), path)
    try:
        # Pillow gets an open file: from a path it maps uncompressed TIFFs to memory, and swaps
        # height and width if the orientation tag says so.
        with path.open("rb") as file, Image.open(file) as image:
            image.seek(page)
            tag, scale = tag_of(image), _grey_steps(image, path)
            image.load()
            # Pillow has turned a TIFF upright while loading it, and has removed its tag.
            is_upright = tag_of(image) == 1
            stored = _values(image, path) // scale
            if is_upright == (orientation == "upright"):
                return stored
            return turn(stored, tag, back=is_upright)
    except (FileNotFoundError, _NoMask):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: damaged, cut short or no image; {EXPECTED}") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); {EXPECTED}") from error


class _NoMask(ValueError):
    """The pixels of a readable file are no mask."""


def _values(image: Image.Image, path: Path) -> np.ndarray:
    mode = image.mode
    if mode in ("LA", "PA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            return _alpha_mask(image, alpha, path)
        mode = {"LA": "L", "PA": "P", "RGBA": "RGB"}[mode]
        image = image.convert(mode) if mode != "P" else image.getchannel("P")
    match mode:
        case "1" | "L" | "P" | "I;16" | "I;16B" | "I":
            return np.array(image).astype(np.int32)
        case "F":
            return _whole(np.array(image), path)
        case "RGB":
            colors = np.array(image)
            grey = (colors == colors[..., :1]).all()
            return colors[..., 0].astype(np.int32) if grey else colors
        case _:
            raise _NoMask(f"{path}: {EXPECTED}; found {mode} pixels")


def _alpha_mask(image: Image.Image, alpha: np.ndarray, path: Path) -> np.ndarray:
    """Returns the alpha channel, if it is all that the image shows: 0 and 1, int32 [H, W]."""
    colors = np.asarray(image.convert("RGB"))
    if (colors == colors[:1, :1]).all() and set(np.unique(alpha)) <= {0, 255}:
        return (alpha // 255).astype(np.int32)
    raise _NoMask(
        f"{path}: the alpha channel has values from {alpha.min()} to 255; {EXPECTED}. Is the mask "
        "in the colours or in the transparency? Save it without an alpha channel"
    )


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy raises ValueError, EOFError, OSError and more
        raise ValueError(f"{path}: damaged or no array of numbers ({error}); {EXPECTED}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: an archive of arrays; {EXPECTED}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{path}: shape {list(array.shape)}; expected [height, width]")
    return array


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    """Converts whole numbers to int32; colours stay."""
    if array.ndim == 3:
        return array
    if array.dtype.kind not in "biuf":
        raise _NoMask(f"{path}: {array.dtype}; {EXPECTED}")
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.round(array))).all():
        low, high = np.nanmin(array), np.nanmax(array)
        raise _NoMask(
            f"{path}: floats from {low:g} to {high:g}; {EXPECTED}. Is it a map of probabilities? "
            "Save its classes as whole numbers"
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise _NoMask(
            f"{path}: values from {array.min():g} to {array.max():g}; expected numbers from 0 on. "
            "Is -1 meant for ignored pixels? Save it as 255"
        )
    return array.astype(np.int32)


def _grey_steps(image: Image.Image, path: Path) -> int:
    """Returns the step between the grey values that Pillow makes of a PNG of 2 or 4 bits."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    with path.open("rb") as file:
        bits = file.read(25)[24]  # the depth in IHDR
    return {2: 85, 4: 17}.get(bits, 1)
