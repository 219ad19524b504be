"""Finds what the stored values of masks mean, and does not guess where it could be two things."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from segjax.data.folders.mask_format import BLURRED, Holds, MaskFacts, MaskFormat, color_name
from segjax.labels import IGNORE_LABEL
from segjax.messages.lists import few

MOST_CLASSES = 64  # more different values are no classes that someone numbered


@dataclass(frozen=True)
class FoundFormat:
    """What the values of masks seem to mean.

    Attributes:
      mask_format: the format; the likeliest one if there is a problem, None if nothing is likely.
      sentence: what it is.
      problem: why it is not sure, with the settings that say which it is; empty if it is sure.
    """

    mask_format: MaskFormat | None
    sentence: str = ""
    problem: str = ""


def find_format(
    masks: Sequence[MaskFacts],
    *,
    holds: Holds | None = None,
    num_classes: int = 0,
    ignored: Sequence[str] = (),
) -> FoundFormat:
    """Finds what the values of masks mean, and does not guess where they could mean two things.

    Args:
      masks: the facts of all masks, at least one.
      holds: what they hold, if it is known.
      num_classes: the number of classes, if it is known; 0 takes it from the masks.
      ignored: values or colours that are of no class.
    """
    if holds == "instances":
        return FoundFormat(MaskFormat(holds, ignored=tuple(ignored)))
    if any(mask.colors for mask in masks):
        found = _propose_colors(masks, {value.lower() for value in ignored})
    else:
        others = {int(value) for value in ignored if value.isdecimal()}
        kept = [replace(mask, counts=_without(mask.counts, others)) for mask in masks]
        found = _find_numbers([mask for mask in kept if mask.counts], holds, num_classes)
    if found.mask_format is None:
        return found
    mask_format = replace(found.mask_format, ignored=tuple(ignored))
    if holds is not None:
        mask_format = replace(mask_format, holds=holds)
    return replace(found, mask_format=mask_format)


def _without(counts: Mapping[int, int], others: set[int]) -> dict[int, int]:
    return {value: count for value, count in counts.items() if value not in others}


def _find_numbers(masks: Sequence[MaskFacts], holds: Holds | None, num_classes: int) -> FoundFormat:
    if not masks:
        return FoundFormat(None, problem="all values of the masks are ignored")
    values = sorted({value for mask in masks for value in mask.counts})
    others = [value for value in values if value != IGNORE_LABEL]
    ignored = ", and 255 is ignored" if IGNORE_LABEL in values else ""
    if values == [0, IGNORE_LABEL] and num_classes in (0, 2):
        text = "a mask is black (0, class 0) and white (255, class 1)"
        if holds is None:
            text += (
                "; if 255 means ignored, give --values 0 1; if each white region is an object, "
                "--holds components"
            )
        return FoundFormat(MaskFormat("classes", ("0", "255")), text)
    if num_classes and others and others[-1] < num_classes:
        text = f"a mask holds class numbers below {num_classes}{ignored}"
        return FoundFormat(_classes(num_classes), text)
    if values[-1] > IGNORE_LABEL and not num_classes and holds is None:
        text = f"a mask holds the numbers of objects (up to {values[-1]}), 0 is the background"
        return FoundFormat(MaskFormat("instances"), text)
    if others == [*range(len(others))] and len(others) <= MOST_CLASSES and not num_classes:
        count = max(len(others), 2)
        text = f"a mask holds the class numbers 0 to {count - 1}{ignored}"
        problem = ""
        if holds is None and _could_be_objects(masks):
            problem = (
                f"masks have the values {_ranges(values)}, and each has all from 0 to its own "
                "highest: classes, or the numbers of objects? Give --holds classes or --holds "
                "instances"
            )
        return FoundFormat(_classes(count), text, problem)
    if len(values) > MOST_CLASSES:
        most = max(masks, key=lambda mask: len(mask.counts))
        problem = f"{most.path}: {len(most.counts)} different values up to {max(most.counts)}. "
        if most.path.suffix.lower() in (".jpg", ".jpeg"):
            problem += "JPEG changes the values of masks; save them as PNG from the original"
        elif holds is None:
            problem += f"Numbers of objects? Give --holds instances. Classes? {BLURRED}"
        else:
            problem += BLURRED
        return FoundFormat(None, problem=problem)
    proposal = MaskFormat("classes", tuple(map(str, values)))
    text = f"a mask holds the class numbers {_ranges(values)}"
    return FoundFormat(proposal, text, _propose_values(masks, values, num_classes))


def _classes(count: int) -> MaskFormat:
    return MaskFormat("classes", tuple(map(str, range(count))))


def _could_be_objects(masks: Sequence[MaskFacts]) -> bool:
    """Whether each mask has all numbers up to its own highest, as numbered objects have."""
    highest = [max(mask.counts) for mask in masks]
    complete = all(
        sorted(mask.counts)[-top:] == [*range(1, top + 1)]
        for mask, top in zip(masks, highest, strict=True)
        if top
    )
    return complete and max(highest) >= 4 and len({*highest}) >= 3


def _propose_colors(masks: Sequence[MaskFacts], ignored: set[str]) -> FoundFormat:
    totals = Counter()
    for mask in masks:
        step = 1 if mask.colors else 0x010101
        totals.update({value * step: count for value, count in mask.counts.items()})
    if len(totals) > MOST_CLASSES:
        most = max(masks, key=lambda mask: len(mask.counts))
        problem = f"{most.path}: {len(most.counts)} colours; expected one for each class. "
        problem += f"{BLURRED} If each object has a colour of its own, give --holds instances"
        return FoundFormat(None, problem=problem)
    names = [color_name(value) for value, _ in totals.most_common()]
    names = [name for name in names if name not in ignored]
    problem = (
        f"masks have {len(names)} colours. Give the colour of each class by --values "
        f"{' '.join(map(repr, names))} (the commonest first) and names by --classes, or both by "
        "--color-table FILE"
    )
    text = f"a mask has a colour for each class: {few(names, most=8)}"
    return FoundFormat(MaskFormat("classes", tuple(names)), text, problem)


def _propose_values(masks: Sequence[MaskFacts], values: list[int], num_classes: int) -> str:
    """Explains values with gaps, and names the masks whose values few others have."""
    users = Counter(value for mask in masks for value in mask.counts)
    rare = min(values, key=lambda value: (users[value], -value))
    where = ""
    if len(masks) > 2 and users[rare] == 1:
        file = next(mask.path for mask in masks if rare in mask.counts)
        where = f" Only {file} has {rare}: an error there?"
    expected = f"0 to {num_classes - 1}" if num_classes else "class numbers from 0 without gaps"
    return (
        f"masks have the values {_ranges(values)}; expected {expected}.{where} If each is a class, "
        f"give --values {' '.join(map(str, values))}; --ignored takes those that are none. If each "
        "object has a number, give --holds instances"
    )


def _ranges(values: Sequence[int]) -> str:
    if len(values) > 12:
        return f"{values[0]} to {values[-1]} ({len(values)} different ones)"
    return ", ".join(map(str, values))
