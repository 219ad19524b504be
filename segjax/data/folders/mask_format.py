"""What the stored values of masks mean: classes or objects."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segjax.data.folders.objects import components
from segjax.data.folders.pairing import Pair
from segjax.data.folders.stored_mask import read_stored_mask
from segjax.data.label_maps import to_class_ids
from segjax.data.orientation import Orientation
from segjax.labels import IGNORE_LABEL
from segjax.messages.lists import few

Holds = Literal["classes", "instances", "components"]
_COLOR = re.compile(r"#[0-9a-f]{6}")
BLURRED = "Was it resized with interpolation, drawn with smooth edges or saved as JPEG?"


@dataclass(frozen=True)
class MaskFormat:
    """What the stored values of masks mean.

    Attributes:
      holds: "classes": a value stands for a class. "instances": each object has its own number
        or colour, and 0 or black is the background. "components": a value stands for a class, the
        first for the background, and each connected region of another class is an object; see
        `segjax.data.folders.objects`.
      values: the stored value of each class, in the order of the classes: numbers ("255") or
        colours ("#ff0000"). Not used for instances.
      ignored: stored values of pixels that neither train nor count in scores. 255 is ignored too,
        unless it is a class or the masks hold instances or colours.
    """

    holds: Holds
    values: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("values", "ignored"):
            for value in getattr(self, name):
                if not (value.isdecimal() or _COLOR.fullmatch(value.lower())):
                    raise ValueError(
                        f"{name}: {value!r} is neither a number from 0 on nor a colour such as "
                        "#ff0000 (six hexadecimal digits)"
                    )
        named = [value.lower() for value in (*self.values, *self.ignored)]
        if twice := [value for value, count in Counter(named).items() if count > 1]:
            raise ValueError(f"values and ignored name {twice[0]} twice")
        if len({value.isdecimal() for value in named}) > 1:
            raise ValueError("values and ignored: expected either numbers or colours, found both")
        if len(self.values) > IGNORE_LABEL:
            raise ValueError(f"values: {len(self.values)} classes; at most {IGNORE_LABEL} fit")

    @property
    def colors(self) -> bool:
        """Whether the values are colours."""
        return any(not value.isdecimal() for value in (*self.values, *self.ignored))

    @property
    def class_ids(self) -> dict[int, int]:
        """The class id of each stored number, or packed colour; 255 = ignored."""
        numbers = {} if self.colors else {IGNORE_LABEL: IGNORE_LABEL}
        numbers |= {_number(value): IGNORE_LABEL for value in self.ignored}
        return numbers | {_number(value): place for place, value in enumerate(self.values)}

    def decode(self, stored: np.ndarray, *, origin: str) -> dict[str, np.ndarray]:
        """Turns a stored mask into the entries of an example.

        Args:
          stored: int32 [H, W], or uint8 [H, W, 3] for colours.
          origin: the file, for errors.

        Returns:
          "labels" uint8 [H, W]; for objects also "instances" int32 [H, W].

        Raises:
          ValueError: values occur that the format does not name.
        """
        if self.holds == "instances":
            return self._decode_instances(stored)
        labels = self._decode_classes(stored, origin=origin)
        if self.holds == "components":
            return {"labels": labels, "instances": components(labels)}
        return {"labels": labels}

    def _decode_classes(self, stored: np.ndarray, *, origin: str) -> np.ndarray:
        if self.colors:
            packed, known = pack_colors(stored), self.class_ids
            found, places = np.unique(packed, return_inverse=True)
            if unknown := [color_name(x) for x in found.tolist() if x not in known]:
                raise ValueError(
                    f"{origin}: {len(unknown)} colours that --values does not name: "
                    f"{few(unknown)}. {BLURRED}"
                )
            ids = np.array([known[x] for x in found.tolist()], np.uint8)
            return ids[places].reshape(packed.shape)
        if stored.ndim == 3:
            raise ValueError(f"{origin}: colours, but --values are numbers")
        return to_class_ids(stored, self.class_ids, origin=origin)

    def _decode_instances(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        values = pack_colors(stored) if stored.ndim == 3 or self.colors else stored
        ignored = np.isin(values, [_number(value) for value in self.ignored])
        if stored.ndim == 3:
            found, places = np.unique(values, return_inverse=True)
            # Black, the background, is the lowest colour if it occurs.
            stored = places.reshape(values.shape) + (found[0] > 0)
        instances = np.where(ignored, 0, stored).astype(np.int32)
        labels = np.where(ignored, IGNORE_LABEL, instances > 0).astype(np.uint8)
        return {"labels": labels, "instances": instances}


@dataclass(frozen=True)
class MaskFacts:
    """What a mask holds.

    Attributes:
      path: the file.
      size: height and width.
      colors: whether the values are packed colours.
      counts: the pixels of each stored number or packed colour.
    """

    path: Path
    size: tuple[int, int]
    colors: bool
    counts: Mapping[int, int]


def examine(pair: Pair, *, orientation: Orientation = "upright") -> MaskFacts:
    """Reads a mask and counts its values.

    Raises:
      OSError, ValueError: the mask cannot be read.
    """
    stored = read_stored_mask(pair.mask, page=pair.page, orientation=orientation)
    packed = pack_colors(stored) if stored.ndim == 3 else stored
    if packed.max() < 1 << 16:  # counting is ten times as fast as sorting
        counts = np.bincount(packed.ravel())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(packed, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    return MaskFacts(pair.mask, stored.shape[:2], stored.ndim == 3, found)


def color_name(packed: int) -> str:
    """Returns the name of a packed colour, such as "#ff0000"."""
    return f"#{packed:06x}"


def pack_colors(stored: np.ndarray) -> np.ndarray:
    """Packs colours [H, W, 3], or grey [H, W], into one number for each pixel, int32 [H, W]."""
    stored = stored.astype(np.int32)
    if stored.ndim == 2:
        return stored * 0x010101
    return (stored[..., 0] << 16) | (stored[..., 1] << 8) | stored[..., 2]


def read_color_table(path: Path) -> dict[str, str]:
    """Reads the colour of each class from a text file; returns colours by class name.

    A line is `name,#ff0000`, `name,255,0,0`, the same with tabs or spaces, or `name:255,0,0::` as
    in CVAT's labelmap.txt; lines without a colour at the end are refused, except a first one, which
    names the columns.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line has no colour, or a name or colour occurs twice.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(
            r"\s*(.+?)[\s,;:]+(?:(#[0-9a-fA-F]{6})|(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3}))[\s:]*",
            line,
        )
        channels = [int(x) for x in match.groups()[2:]] if match and match[3] else []
        if match is None or any(x > 255 for x in channels):
            if number == 1:
                continue
            raise ValueError(
                f"{path}, line {number}: {line.strip()!r}; expected a class and its colour, such "
                "as road,#804080 or road,128,64,128"
            )
        color = match[2].lower() if match[2] else "#" + "".join(f"{x:02x}" for x in channels)
        name = match[1].strip().strip('"')
        if name in table or color in table.values():
            raise ValueError(f"{path}, line {number}: {name} or {color} occurs twice")
        table[name] = color
    if not table:
        raise ValueError(f"{path}: no colours; expected lines such as road,#804080")
    return table


def _number(value: str) -> int:
    return int(value) if value.isdecimal() else int(value[1:], 16)
