"""Pairs files and reads what their masks hold, each once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from tqdm import tqdm

from segjax.data.folders.mask_format import MaskFacts, MaskFormat, examine
from segjax.data.folders.objects import ObjectFacts, object_facts
from segjax.data.folders.pairing import Pair, pair_folders
from segjax.data.folders.source import read_masks
from segjax.data.loading.ordered_map import map_in_threads
from segjax.data.orientation import Orientation


@dataclass(frozen=True)
class Example:
    """A pair and what its masks hold; `labels` is of the mask that holds the classes."""

    pair: Pair
    mask: MaskFacts
    labels: MaskFacts


def find_pairs(
    places: tuple[Path, Path],
    class_masks: Path | None,
    *,
    suffix: str | None,
    skip_unmatched: bool,
) -> tuple[Sequence[Pair], list[str], list[str]]:
    """Pairs images with masks, and with masks of classes if there are any.

    Args:
      places: the folders of images and of masks.
      class_masks: the folder of the masks of classes; None if there is none.
      suffix: what the names of masks have behind the image's; see `pair_folders`.
      skip_unmatched: leave out files without a partner; otherwise they are problems.

    Returns:
      The pairs; notes and problems, one sentence each.
    """
    pairing = pair_folders(*places, suffix=suffix)
    pairs, pairings = pairing.pairs, [pairing]
    notes = [f"{len(pairs)} images with masks; {pairing.rule}"]
    if pairing.others:
        files = f"{len(pairing.others)} files, such as {pairing.others[0]}"
        notes.append(f"{files}, belong to an image and are not its mask: skipped")
    if class_masks is not None:
        second = pair_folders(places[0], class_masks)
        pairings.append(second)
        notes.append(f"masks of classes in {class_masks}; {second.rule}")
        mask_of = {pair.id: pair.mask for pair in second.pairs}
        pairs = [replace(pair, classes=mask_of[pair.id]) for pair in pairs if pair.id in mask_of]
    unmatched = [
        sentence
        for each in pairings
        for sentence in each.describe_unmatched(skipped=skip_unmatched)
    ]
    return pairs, [*notes, *unmatched * skip_unmatched], unmatched * (not skip_unmatched)


def read_examples(
    pairs: Sequence[Pair], orientation: Orientation
) -> tuple[list[Example], list[str]]:
    """Reads masks; returns the examples that can be read, and why others cannot."""
    masks = _read_facts(pairs, orientation)
    labels = masks
    if any(pair.classes is not None for pair in pairs):
        labels = _read_facts([replace(x, mask=x.classes or x.mask) for x in pairs], orientation)
    found, problems = [], []
    for pair, mask, classes in zip(pairs, masks, labels, strict=True):
        if isinstance(mask, MaskFacts) and isinstance(classes, MaskFacts):
            found.append(Example(pair, mask, classes))
        else:
            errors = [each for each in (mask, classes) if isinstance(each, Exception)]
            problems += dict.fromkeys(map(str, errors))
    return found, problems


def _read_facts(pairs: Sequence[Pair], orientation: Orientation) -> Sequence[MaskFacts | Exception]:
    return _facts(tuple(pairs), orientation, _stamps([pair.mask for pair in pairs]))


def _stamps(paths: Sequence[Path]) -> tuple:
    """Returns size and time of each file, so that changed files are read again."""
    return tuple((x.st_size, x.st_mtime_ns) for x in (path.stat() for path in paths))


@lru_cache(maxsize=8)
def _facts(
    pairs: tuple[Pair, ...], orientation: Orientation, stamps: tuple
) -> tuple[MaskFacts | Exception, ...]:
    """Examines masks once: the command line, and each split when it opens, ask for the same."""
    del stamps
    return _map(partial(_examine, orientation=orientation), pairs)


def read_objects(
    pairs: Sequence[Pair],
    mask_format: MaskFormat,
    class_format: MaskFormat | None,
    orientation: Orientation,
) -> tuple[dict[Pair, ObjectFacts], list[str]]:
    """Finds the objects of each pair whose masks fit each other, and why others do not."""
    files = [path for pair in pairs for path in (pair.mask, pair.classes) if path is not None]
    read = _objects(tuple(pairs), mask_format, class_format, orientation, _stamps(files))
    found = dict(zip(pairs, read, strict=True))
    problems = [str(each) for each in read if isinstance(each, Exception)]
    return {k: each for k, each in found.items() if isinstance(each, ObjectFacts)}, problems


@lru_cache(maxsize=8)
def _objects(
    pairs: tuple[Pair, ...],
    mask_format: MaskFormat,
    class_format: MaskFormat | None,
    orientation: Orientation,
    stamps: tuple,
) -> tuple[ObjectFacts | Exception, ...]:
    del stamps

    def read(pair: Pair) -> ObjectFacts | Exception:
        try:
            entries, mixed = read_masks(pair, mask_format, class_format, orientation)
            return object_facts(entries, mixed=mixed)
        except (OSError, ValueError) as error:
            return error

    return _map(read, pairs)


def _map(function: Callable, pairs: Sequence[Pair]) -> tuple:
    read = map_in_threads(function, pairs)
    return tuple(tqdm(read, "reading masks", len(pairs), unit="mask", leave=False, disable=None))


def _examine(pair: Pair, *, orientation: Orientation) -> MaskFacts | Exception:
    try:
        return examine(pair, orientation=orientation)
    except (OSError, ValueError) as error:
        return error
