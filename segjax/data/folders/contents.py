"""Reads what folders of images and masks hold: pairs, values of masks, division into splits."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segjax.data.folders.division import DivisionConfig, NothingLeft, divide
from segjax.data.folders.mask_format import MaskFacts, MaskFormat, color_name, examine, find_format
from segjax.data.folders.pairing import Pair, pair_folders
from segjax.data.folders.source import FolderSource, count_channels
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import Orientation
from segjax.labels import IGNORE_LABEL
from segjax.messages.lists import few

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class FolderContents:
    """What folders hold, divided into splits.

    Attributes:
      sources: the examples of each split that has any, without those that have problems.
      mask_format: what the values of the masks mean; the likeliest if a problem says that it is
        not sure.
      channels: the number of channels of the images.
      pixels: the pixels of each class in the training masks, and of 255 (ignored).
      problems: what must be mended before training, one sentence each.
      notes: what a user should know, one sentence each.
    """

    sources: Mapping[str, FolderSource]
    mask_format: MaskFormat | None
    channels: int
    pixels: Mapping[int, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The number of examples of each split and a hash of their names, as text."""
        names = hashlib.blake2b(digest_size=6)
        for split, source in self.sources.items():
            for pair in source.pairs:
                names.update(f"{split}/{pair.id}\n".encode())
        counts = ", ".join(f"{len(source)} {split}" for split, source in self.sources.items())
        return f"{counts} ({names.hexdigest()})"


def read_folders(
    places: Mapping[str, tuple[Path, Path]],
    division: DivisionConfig,
    *,
    suffix: str | None = None,
    mask_format: MaskFormat | None = None,
    num_classes: int = 0,
    ignored: Sequence[str] = (),
    channels: int | None = None,
    orientation: Orientation = "upright",
    skip_unmatched: bool = False,
) -> FolderContents:
    """Pairs the files of folders, reads all masks, and divides the examples into splits.

    Args:
      places: the folders of images and of masks, by split: "train", and "val" and "test" if they
        have folders of their own.
      division: how the examples of "train" are divided into the other splits.
      suffix: what the names of masks have behind the image's; see `pair_folders`.
      mask_format: what the values of masks mean; None finds it.
      num_classes: the number of classes, if it is known; 0 takes it from the masks.
      ignored: values that are of no class, if the format is to be found.
      channels: the number of channels; None takes 3 if any image has colours.
      orientation: how files with an EXIF orientation are read; see `segjax.data.orientation`.
      skip_unmatched: leave out images without a mask and masks without an image.

    Raises:
      OSError, ValueError: a folder is missing or empty, or no names fit (see `pair_folders`); a
        list of the division is missing or does not fit. Everything else is a problem of the result.
    """
    problems, notes = [], []
    pairs: dict[str, list[tuple[Pair, MaskFacts]]] = {}
    for split, (images, masks) in places.items():
        pairing = pair_folders(images, masks, suffix=suffix)
        notes.append(f"{split}: {len(pairing.pairs)} images with masks; {pairing.rule}")
        (notes if skip_unmatched else problems).extend(pairing.problems)
        if pairing.others:
            files = f"{len(pairing.others)} files, such as {pairing.others[0]}"
            notes.append(f"{files}, belong to an image and are not its mask: skipped")
        pairs[split], unreadable = _read_masks(pairing.pairs, orientation)
        problems += unreadable
    every_mask = [mask for each in pairs.values() for _, mask in each]
    if mask_format is None and every_mask:
        found = find_format(every_mask, num_classes=num_classes, ignored=ignored)
        mask_format = found.mask_format
        notes += [found.sentence] * bool(found.sentence)
        problems += [found.problem] * bool(found.problem)
    if mask_format is None:
        return FolderContents({}, None, channels or 1, {}, tuple(problems), tuple(notes))
    for split, each in pairs.items():
        wrong = {
            mask.path: problem for _, mask in each for problem in value_problems(mask, mask_format)
        }
        problems += wrong.values()
        pairs[split] = [(pair, mask) for pair, mask in each if mask.path not in wrong]
    if channels is None:
        channels, note, problem = _common_channels(
            [pair for each in pairs.values() for pair, _ in each]
        )
        notes += note
        problems += problem
    parts = {split: each for split, each in pairs.items() if split != "train"}
    try:
        places_of = divide(
            [pair.id for pair, _ in pairs["train"]],
            [_classes_in(mask, mask_format) for _, mask in pairs["train"]],
            division,
            held_out=parts.keys(),
        )
    except NothingLeft as error:
        problems += [] if problems else [str(error)]  # other problems may be the reason
        places_of = {"train": [*range(len(pairs["train"]))]}
    parts |= {
        split: [pairs["train"][x] for x in found] for split, found in places_of.items() if found
    }
    sources = {
        split: FolderSource(
            f"{split} of {places.get(split, places['train'])[0]}",
            tuple(pair for pair, _ in parts[split]),
            mask_format,
            channels,
            orientation,
            sizes=np.array([mask.size for _, mask in parts[split]], np.int32).reshape(-1, 2),
            notes=tuple(notes) if split == "train" else (),
            object_counts=_object_counts([mask for _, mask in parts[split]], mask_format),
        )
        for split in SPLITS
        if split in parts
    }
    pixels = _class_pixels([mask for _, mask in parts.get("train", ())], mask_format)
    return FolderContents(sources, mask_format, channels, pixels, tuple(problems), tuple(notes))


def _read_masks(
    pairs: Sequence[Pair], orientation: Orientation
) -> tuple[list[tuple[Pair, MaskFacts]], list[str]]:
    """Reads masks; returns the pairs with what their masks hold, and why others cannot be read."""
    found, problems = [], []
    stamps = tuple((x.st_size, x.st_mtime_ns) for x in (pair.mask.stat() for pair in pairs))
    for pair, facts in zip(pairs, _facts(tuple(pairs), orientation, stamps), strict=True):
        if isinstance(facts, Exception):
            problems.append(str(facts))
        else:
            found.append((pair, facts))
    return found, problems


@lru_cache(maxsize=8)
def _facts(
    pairs: tuple[Pair, ...], orientation: Orientation, stamps: tuple
) -> tuple[MaskFacts | Exception, ...]:
    """Examines masks once: the command line, and each split when it opens, ask for the same.

    Args:
      stamps: size and time of each file, so that changed files are read again.
    """
    del stamps
    read = map_in_threads(partial(_examine, orientation=orientation), pairs)
    bar = tqdm(read, "reading masks", len(pairs), unit="mask", leave=False, disable=None)
    return tuple(bar)


def _common_channels(pairs: Sequence[Pair]) -> tuple[int, list[str], list[str]]:
    """Returns the number of channels that all images can have; notes and problems if they differ.

    Grey and RGB become one another; other numbers of bands must agree.
    """
    found = count_channels(pairs)
    most = max(found, default=1)
    if len(found) < 2:
        return most, [], []
    if {*found} == {1, 3}:
        return 3, [f"{found[1]} of {found.total()} images are grey; they are read as RGB"], []
    counts = ", ".join(f"{count} of {channels} bands" for channels, count in sorted(found.items()))
    return most, [], [f"the images differ in their bands: {counts}; expected as many in all"]


def value_problems(mask: MaskFacts, mask_format: MaskFormat) -> list[str]:
    """Returns a sentence if a mask has values or colours that the format does not name."""
    if mask_format.holds == "instances":
        return []
    if mask.colors and not mask_format.colors:
        return [f"{mask.path}: it has colours, but --values are numbers"]
    known = mask_format.class_ids
    unknown = [value for value in _in_units(mask, mask_format) if value not in known]
    if not unknown:
        return []
    names = [color_name(value) if mask_format.colors else str(value) for value in unknown]
    what = ("colour" if mask_format.colors else "value") + "s" * (len(names) > 1)
    return [
        f"{mask.path}: {what} {few(names, most=5)} of no class; --values gives those of the "
        "classes, --ignored takes others"
    ]


def _examine(pair: Pair, *, orientation: Orientation) -> MaskFacts | Exception:
    try:
        return examine(pair, orientation=orientation)
    except (OSError, ValueError) as error:
        return error


def _classes_in(mask: MaskFacts, mask_format: MaskFormat) -> set[int]:
    return {each for each in _class_pixels([mask], mask_format) if each != IGNORE_LABEL}


def _class_pixels(masks: Sequence[MaskFacts], mask_format: MaskFormat) -> Counter:
    """Counts the pixels of each class, and of 255 (ignored)."""
    counts, ids = Counter(), mask_format.class_ids
    for mask in masks:
        for value, pixels in _in_units(mask, mask_format).items():
            if mask_format.holds == "classes":
                counts[ids[value]] += pixels
            else:
                counts[IGNORE_LABEL if value in ids else int(value > 0)] += pixels
    return counts


def _object_counts(masks: Sequence[MaskFacts], mask_format: MaskFormat) -> np.ndarray | None:
    if mask_format.holds == "classes":
        return None
    ids = mask_format.class_ids
    counts = [sum(x > 0 and x not in ids for x in _in_units(m, mask_format)) for m in masks]
    return np.array(counts, np.int64)


def _in_units(mask: MaskFacts, mask_format: MaskFormat) -> Mapping[int, int]:
    """Returns the pixels of each value; as packed colours if the format has colours."""
    if mask_format.colors and not mask.colors:
        return {value * 0x010101: count for value, count in mask.counts.items()}
    return mask.counts
