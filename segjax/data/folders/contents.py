"""Reads what folders of images and masks hold: pairs, values of masks, division into splits."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from segjax.data.folders.division import DivisionConfig, NothingLeft, divide
from segjax.data.folders.facts import find_pairs, read_examples, read_objects
from segjax.data.folders.found_format import find_format
from segjax.data.folders.mask_format import Holds, MaskFacts, MaskFormat, color_name
from segjax.data.folders.objects import ObjectFacts, object_notes
from segjax.data.folders.pairing import Pair
from segjax.data.folders.source import FolderSource, count_channels
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
      class_format: what the values of the masks of classes mean that lie beside masks of numbered
        objects; None without such masks.
      channels: the number of channels of the images.
      pixels: the pixels of each class in the training masks, and of 255 (ignored).
      problems: what must be mended before training, one sentence each.
      notes: what a user should know, one sentence each.
    """

    sources: Mapping[str, FolderSource]
    mask_format: MaskFormat | None
    class_format: MaskFormat | None
    channels: int
    pixels: Mapping[int, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def label_format(self) -> MaskFormat | None:
        """What the values mean in those masks that hold the classes."""
        return self.class_format or self.mask_format

    @property
    def has_objects(self) -> bool:
        """Whether the masks tell objects apart."""
        return self.mask_format is not None and self.mask_format.holds != "classes"

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
    class_masks: Mapping[str, Path] = MappingProxyType({}),
    suffix: str | None = None,
    holds: Holds | None = None,
    mask_format: MaskFormat | None = None,
    num_classes: int = 0,
    ignored: Sequence[str] = (),
    classes: Sequence[str] = (),
    channels: int | None = None,
    orientation: Orientation = "upright",
    skip_unmatched: bool = False,
) -> FolderContents:
    """Pairs the files of folders, reads all masks, and divides the examples into splits.

    Args:
      places: the folders of images and of masks, by split: "train", and "val" and "test" if they
        have folders of their own.
      division: how the examples of "train" are divided into the other splits.
      class_masks: the folder of masks of classes, by split, for objects that the other masks
        number. `mask_format`, `num_classes`, `ignored` and `classes` are then about these.
      suffix: what the names of masks have behind the image's; see `pair_folders`.
      holds: what the masks hold, if it is known.
      mask_format: what the values of masks mean; None finds it.
      num_classes: the number of classes, if it is known; 0 takes it from the masks.
      ignored: values that are of no class, if the format is to be found.
      classes: the names of the classes, for notes about objects.
      channels: the number of channels; None takes 3 if any image has colours.
      orientation: how files with an EXIF orientation are read; see `segjax.data.orientation`.
      skip_unmatched: leave out images without a mask and masks without an image.

    Raises:
      OSError, ValueError: a folder is missing or empty, or no names fit (see `pair_folders`); a
        list of the division is missing or does not fit. Everything else is a problem of the result.
    """
    problems, notes = [], []
    examples = {}
    for split, folders in places.items():
        pairs, seen, wrong = find_pairs(
            folders, class_masks.get(split), suffix=suffix, skip_unmatched=skip_unmatched
        )
        notes += [f"{split}: {note}" for note in seen]
        examples[split], unreadable = read_examples(pairs, orientation)
        problems += [*wrong, *unreadable]
    every = [example for each in examples.values() for example in each]
    class_format = None
    if mask_format is None and every:
        found = find_format(
            [example.labels for example in every],
            holds="classes" if class_masks else holds,
            num_classes=num_classes,
            ignored=ignored,
        )
        mask_format = found.mask_format
        notes += [found.sentence] * bool(found.sentence)
        problems += [found.problem] * bool(found.problem)
    if mask_format is None:
        return FolderContents({}, None, None, channels or 1, {}, tuple(problems), tuple(notes))
    label_format = mask_format
    if class_masks:
        mask_format, class_format = MaskFormat("instances"), mask_format
    for split, each in examples.items():
        wrong = {
            example.labels.path: problem
            for example in each
            for problem in value_problems(example.labels, label_format)
        }
        problems += wrong.values()
        examples[split] = [x for x in each if x.labels.path not in wrong]
    objects = None
    every = [example for each in examples.values() for example in each]
    if mask_format.holds == "components" or class_format is not None:
        objects, wrong = read_objects(
            [example.pair for example in every], mask_format, class_format, orientation
        )
        problems += wrong
        examples = {k: [x for x in each if x.pair in objects] for k, each in examples.items()}
    elif mask_format.holds == "instances":
        objects = {x.pair: _numbered_objects(x.mask, mask_format) for x in every}
    if objects:
        names = classes or [f"class {number}" for number in range(len(label_format.values))]
        notes += object_notes(
            list(objects.values()),
            [pair.mask for pair in objects],
            classes=names,
            connected=mask_format.holds == "components",
        )
    if channels is None:
        channels, note, problem = _common_channels(
            [example.pair for each in examples.values() for example in each]
        )
        notes += note
        problems += problem
    parts = {split: each for split, each in examples.items() if split != "train"}
    try:
        places_of = divide(
            [example.pair.id for example in examples["train"]],
            [_classes_in(example.labels, label_format) for example in examples["train"]],
            division,
            held_out=parts.keys(),
        )
    except NothingLeft as error:
        problems += [] if problems else [str(error)]  # other problems may be the reason
        places_of = {"train": [*range(len(examples["train"]))]}
    parts |= {
        split: [examples["train"][x] for x in found] for split, found in places_of.items() if found
    }
    sources = {
        split: FolderSource(
            f"{split} of {places.get(split, places['train'])[0]}",
            tuple(example.pair for example in parts[split]),
            mask_format,
            channels,
            orientation,
            class_format=class_format,
            sizes=np.array([x.mask.size for x in parts[split]], np.int32).reshape(-1, 2),
            object_counts=(
                None
                if objects is None
                else np.array([len(objects[x.pair].areas) for x in parts[split]], np.int64)
            ),
        )
        for split in SPLITS
        if split in parts
    }
    pixels = _class_pixels([x.labels for x in parts.get("train", ())], label_format)
    return FolderContents(
        sources, mask_format, class_format, channels, pixels, tuple(problems), tuple(notes)
    )


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


def _classes_in(mask: MaskFacts, mask_format: MaskFormat) -> set[int]:
    return {each for each in _class_pixels([mask], mask_format) if each != IGNORE_LABEL}


def _class_pixels(masks: Sequence[MaskFacts], mask_format: MaskFormat) -> Counter:
    """Counts the pixels of each class, and of 255 (ignored)."""
    counts, ids = Counter(), mask_format.class_ids
    for mask in masks:
        for value, pixels in _in_units(mask, mask_format).items():
            if mask_format.holds == "instances":
                counts[IGNORE_LABEL if value in ids else int(value > 0)] += pixels
            else:
                counts[ids[value]] += pixels
    return counts


def _numbered_objects(mask: MaskFacts, mask_format: MaskFormat) -> ObjectFacts:
    ids, counts = mask_format.class_ids, _in_units(mask, mask_format)
    areas = [count for value, count in counts.items() if value > 0 and value not in ids]
    return ObjectFacts(np.array(areas, np.int64), np.ones(len(areas), np.int64))


def _in_units(mask: MaskFacts, mask_format: MaskFormat) -> Mapping[int, int]:
    """Returns the pixels of each value; as packed colours if the format has colours."""
    if mask_format.colors and not mask.colors:
        return {value * 0x010101: count for value, count in mask.counts.items()}
    return mask.counts
