"""COCO's run-length encoding of masks, byte for byte as COCO's own code writes it, in NumPy.

Runs go down the columns and alternate between background and foreground. The first is background,
of length 0 if the first pixel is foreground. COCO compresses the lengths to text (rleToString in
maskApi.c): from the fourth on, a length is stored as its difference from the length two runs
before. Each number is cut into groups of five bits, lowest first. A group becomes one character,
counted from "0", with 32 added if another group follows. The top bit of the last group is the sign.
"""

from collections.abc import Mapping

import cv2
import numpy as np

_GROUP_BITS = 5
_SIGN, _MORE = 0x10, 0x20
_FIRST, _LAST = ord("0"), ord("0") + 0x3F


def encode(
    mask: np.ndarray, *, size: tuple[int, int] | None = None, top: int = 0, left: int = 0
) -> dict:
    """Encodes a mask, bool [H, W], as compressed {"size": [H, W], "counts": str}.

    With a `size`, the mask is a window at (top, left) of an image of that height and width, which
    is zero elsewhere. The time taken depends on the window alone.

    Raises:
      ValueError: the window reaches out of the image.
    """
    size = mask.shape if size is None else size
    return {
        "size": [int(side) for side in size],
        "counts": compress(run_lengths(mask, size=size, top=top, left=left)),
    }


def decode(rle: Mapping) -> np.ndarray:
    """Decodes {"size": [H, W], "counts": ...} to bool [H, W].

    Counts are compressed (str or bytes) or a sequence of run lengths.

    Raises:
      ValueError: the counts are not run lengths or do not fill the size.
    """
    height, width = rle["size"]
    lengths = lengths_of(rle)
    return np.repeat(_is_foreground(lengths), lengths).reshape(width, height).T


def area(rle: Mapping) -> int:
    """Counts the pixels of an encoded mask; argument and errors are those of `decode`."""
    return int(lengths_of(rle)[1::2].sum())


def run_lengths(
    mask: np.ndarray, *, size: tuple[int, int] | None = None, top: int = 0, left: int = 0
) -> np.ndarray:
    """Computes the run lengths of a mask, int64 [n], background first; see `encode`."""
    if mask.ndim != 2:
        raise ValueError(f"expected a mask [H, W], got shape {mask.shape}")
    height, width = mask.shape if size is None else size
    rows, columns = mask.shape
    if min(top, left) < 0 or top + rows > height or left + columns > width:
        raise ValueError(
            f"a window of {rows} × {columns} pixels at ({top}, {left}) reaches out of an image "
            f"of {height} × {width}"
        )
    pixels = np.asarray(mask, bool)
    if pixels.flags.f_contiguous:
        pixels = pixels.T.view(np.uint8)
    else:
        pixels = np.ascontiguousarray(pixels).view(np.uint8)
        # Masks are mostly background: finding the object first is cheaper than transposing all.
        x, y, columns, rows = cv2.boundingRect(pixels)
        top, left = top + y, left + x
        pixels = pixels[y : y + rows, x : x + columns]
        # OpenCV transposes several times as fast as NumPy, but refuses empty arrays.
        pixels = cv2.transpose(pixels) if pixels.size else pixels.T
    if rows < height:  # so that no run continues from the foot of a column to the next
        pixels = np.pad(pixels, ((0, 0), (0, 1)))
    stride = pixels.shape[1]
    pixels = pixels.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    if pixels.size and pixels[0]:
        changes = np.concatenate([[0], changes])
    if pixels.size and pixels[-1]:
        changes = np.append(changes, pixels.size)
    column, row = np.divmod(changes, max(stride, 1))
    ends = (left + column) * height + top + row
    if ends.size and ends[-1] == height * width:
        ends = ends[:-1]  # the last run needs no change to end it
    return np.diff(ends, prepend=0, append=height * width)


def compress(lengths: np.ndarray) -> str:
    """Compresses run lengths, int [n], to COCO's text."""
    numbers = np.array(lengths, np.int64)
    numbers[3:] -= np.asarray(lengths, np.int64)[1:-2]
    groups, written = [], [np.ones(len(numbers), bool)]
    while written[-1].any():
        group = numbers & (_MORE - 1)
        numbers = numbers >> _GROUP_BITS
        # A number is complete when the sign bit of its last group gives all remaining bits.
        more = written[-1] & (numbers != np.where(group & _SIGN, -1, 0))
        groups.append(group + _MORE * more + _FIRST)
        written.append(more)
    if not groups:
        return ""
    characters = np.stack(groups, axis=1)[np.stack(written[:-1], axis=1)]
    return characters.astype(np.uint8).tobytes().decode("ascii")


def decompress(counts: str | bytes) -> np.ndarray:
    """Decompresses COCO's text to run lengths, int64 [n].

    Raises:
      ValueError: COCO writes no such text.
    """
    text = counts.encode() if isinstance(counts, str) else counts
    characters = np.frombuffer(text, np.uint8)
    if not characters.size:
        return np.zeros(0, np.int64)
    groups = characters.astype(np.int64) - _FIRST
    ends = groups & _MORE == 0
    start = np.flatnonzero(np.concatenate([[True], ends[:-1]]))
    place = np.arange(groups.size) - np.repeat(start, np.diff(start, append=groups.size))
    wrong = characters.min() < _FIRST or characters.max() > _LAST
    if wrong or not ends[-1] or place.max() > 7:  # 8 groups hold 40 bits
        raise ValueError(
            f"expected compressed run lengths as COCO writes them, found {counts!r:.40}"
        )
    numbers = np.add.reduceat((groups & (_MORE - 1)) << (_GROUP_BITS * place), start)
    last = _GROUP_BITS * (place[ends] + 1)
    numbers -= np.where(groups[ends] & _SIGN, 1 << last, 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def lengths_of(rle: Mapping) -> np.ndarray:
    """Returns the run lengths of an encoded mask, int64 [n], checked against its size."""
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, str | bytes):
        lengths = decompress(counts)
    else:
        lengths = np.asarray(counts)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise ValueError(f"expected run lengths as text or as integers, found {counts!r:.40}")
    if lengths.min(initial=0) < 0 or lengths.sum() != height * width:
        raise ValueError(
            f"expected runs that fill {height} × {width} pixels, found {lengths.sum()} pixels"
        )
    return lengths


def _is_foreground(lengths: np.ndarray) -> np.ndarray:
    return np.arange(len(lengths)) % 2 == 1
