"""Divides examples into training, validation and test: by a seeded hash, in folds, or by lists.

Examples of one group stay together, such as the tiles of a slide. The division is stratified: each
split gets its share of the groups of each stratum. A group's stratum is its rarest class, the one
that the fewest examples have.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from segjax.messages.hints import did_you_mean
from segjax.messages.lists import few


class NothingLeft(ValueError):
    """There are too few examples for the splits."""


Division = dict[str, list[int]]  # the places of the examples of "train", "val" and "test"


@dataclass(frozen=True)
class DivisionConfig:
    """How examples are divided into train, val and test."""

    val_share: float = 0.2
    """Share of the examples that are held out for validation. Folders or a list of validation
    images, and folds, replace it."""
    test_share: float = 0.0
    """Share of the examples that are scored only at the end of training."""
    split_seed: int = 0
    """Seed of the hash that draws the held-out examples."""
    group: str = ""
    """Regular expression for what the names of examples of one group have in common, such as the
    slide that tiles come from: "^(.*)_tile" or "^[^/]*". Its first bracket counts, or all that it
    matches. A group is never divided."""
    folds: int | None = None
    """Number of parts for cross-validation; val is the part `fold`, train all others."""
    fold: int | None = None
    """The part that is held out as val, from 0."""
    val_list: Path | None = None
    """Text file with the validation images, one name a line: with or without the file's suffix,
    and with the sub-folder."""
    test_list: Path | None = None
    """Text file with the test images."""

    def __post_init__(self):
        for name in ("val_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}; expected a share from 0 to below 1"
                )
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share={self.val_share} and test_share={self.test_share} leave nothing to "
                "train"
            )
        if (self.folds is None) != (self.fold is None):
            raise ValueError("folds and fold go together, such as --folds 5 --fold 0")
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds={self.folds}; expected at least 2")
        if self.folds is not None and self.fold not in range(self.folds):
            raise ValueError(f"fold={self.fold}; expected 0 to {self.folds - 1}")
        if self.folds is not None and self.val_list is not None:
            raise ValueError("folds and val_list both say what is val; give one of them")
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"group={self.group!r} is no regular expression: {error}") from error


def divide(
    ids: Sequence[str],
    classes: Sequence[Collection[int]],
    config: DivisionConfig,
    *,
    held_out: Collection[str] = (),
) -> Division:
    """Divides examples.

    Args:
      ids: the name of each example.
      classes: the classes that occur in each example.
      config: the settings.
      held_out: splits that come from elsewhere, "val" or "test", and get no share here.

    Returns:
      The places of the examples of "train", "val" and "test", each in ascending order.

    Raises:
      FileNotFoundError: a list is missing.
      NothingLeft: a split would be empty.
      ValueError: a list names an example that is not there or divides a group, or the pattern of
        the groups does not match a name.
    """
    groups = _groups(ids, config.group)
    place_of_group = {}
    for split, path in (("test", config.test_list), ("val", config.val_list)):
        if path is not None:
            for place in _listed(path, ids):
                group = groups[place]
                if place_of_group.setdefault(group, split) != split:
                    raise ValueError(f"{path}: {ids[place]} is in the list of test images as well")
            _refuse_divided(path, split, ids, groups, place_of_group)
    shares = {
        "test": config.test_share if config.test_list is None and "test" not in held_out else 0.0,
        "val": config.val_share if config.val_list is None and "val" not in held_out else 0.0,
    }
    if config.folds is not None:
        shares["val"] = 0.0
    strata = _strata(groups, classes, config.split_seed, place_of_group)
    owed = {"test": 0.0, "val": 0.0}
    turn = 0
    for stratum in strata:
        kept = []
        for group in stratum:
            for name in owed:
                owed[name] += shares[name]
            split = next((name for name in owed if shares[name] and owed[name] >= 0.5), None)
            if split is None:
                kept.append(group)
            else:
                place_of_group[group] = split
                owed[split] -= 1
        if config.folds is not None:
            for group in kept:
                if turn % config.folds == config.fold:
                    place_of_group[group] = "val"
                turn += 1
    division: Division = {"train": [], "val": [], "test": []}
    for place, group in enumerate(groups):
        division[place_of_group.get(group, "train")].append(place)
    expected = {"train", *(name for name, share in shares.items() if share)}
    expected |= {"val"} if config.folds is not None else set()
    if empty := [
        name for name in ("train", "val", "test") if name in expected and not division[name]
    ]:
        raise NothingLeft(
            f"{len(ids)} images in {len({*groups})} groups are too few: {empty[0]} would be empty. "
            "Give other shares, or folders of its own"
        )
    return division


def _groups(ids: Sequence[str], pattern: str) -> list[str]:
    """Returns the group of each example; by default each is one of its own."""
    if not pattern:
        return list(ids)
    found = []
    for name in ids:
        match = re.search(pattern, name)
        if match is None:
            raise ValueError(f"group={pattern!r} does not match the name {name!r}")
        found.append(match[1] if match.re.groups and match[1] is not None else match[0])
    return found


def _strata(groups, classes, seed: int, placed: Collection[str]) -> list[list[str]]:
    """Returns the groups of each stratum in the order of their hashes, without those in lists."""
    occurrences = Counter(each for present in classes for each in set(present))
    in_group: dict[str, set[int]] = defaultdict(set)
    for group, present in zip(groups, classes, strict=True):
        in_group[group] |= set(present)
    strata = defaultdict(list)
    for group, present in in_group.items():
        if group not in placed:
            rarest = min(present, key=lambda each: (occurrences[each], each), default=-1)
            strata[rarest].append(group)
    return [
        sorted(strata[each], key=lambda group: _hash(seed, group))
        for each in sorted(strata, key=lambda each: (occurrences[each], each))
    ]


def _hash(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=16).digest()


def _listed(path: Path, ids: Sequence[str]) -> list[int]:
    """Returns the places of the examples that a list names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a list of images")
    places = {name: place for place, name in enumerate(ids)}
    short: dict[str, list[int]] = defaultdict(list)
    for name, place in places.items():
        short[name.rpartition("/")[2]].append(place)
    found = []
    for line in path.read_text().splitlines():
        name = line.strip()
        if not name:
            continue
        stem = name if name in places or name in short else str(Path(name).with_suffix(""))
        alone = short.get(stem, [])
        if stem in places:
            found.append(places[stem])
        elif len(alone) == 1:
            found.append(alone[0])
        else:
            several = f"; it could be {few([ids[x] for x in alone])}" if alone else ""
            hint = several or did_you_mean(stem, ids)
            raise ValueError(f"{path}: no image is named {name!r}{hint or ''}")
    if not found:
        raise ValueError(f"{path}: the list is empty")
    return found


def _refuse_divided(path, split, ids, groups, place_of_group) -> None:
    listed = {*_listed(path, ids)}
    for place, group in enumerate(groups):
        if place_of_group.get(group) == split and place not in listed:
            other = next(ids[x] for x in listed if groups[x] == group)
            raise ValueError(
                f"{path}: it has {other}, but not {ids[place]} of the same group {group!r}"
            )
