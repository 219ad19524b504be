"""Hints to the nearest valid name."""

import difflib
import math
import re
from collections.abc import Iterable

_NUMBER = re.compile("[0-9]+")


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Returns the known name most similar to `name`; None if no similarity reaches `cutoff`.

    Where the number in it is the only difference, and no slip of one key, the nearest number
    counts: resnet34 for resnet18, not resnet101.
    """
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    if not found or _differ_in_one_key(name, found[0]):
        return next(iter(found), None)
    alike = [each for each in known if _without_numbers(each) == _without_numbers(name)]
    return min(alike, key=lambda each: _distance(each, name), default=found[0])


def _differ_in_one_key(a: str, b: str) -> bool:
    blocks = difflib.SequenceMatcher(None, a, b).get_matching_blocks()
    return sum(block.size for block in blocks) >= max(len(a), len(b)) - 1


def _without_numbers(name: str) -> str:
    return _NUMBER.sub("#", name)


def _distance(a: str, b: str) -> float:
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return sum(abs(math.log((int(x) + 1) / (int(y) + 1))) for x, y in pairs)


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Returns "; did you mean 'x'?" for the nearest known name, or an empty string."""
    found = nearest(name, known, cutoff=cutoff)
    return f"; did you mean {found!r}?" if found else ""
