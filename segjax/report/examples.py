"""The report's pictures: the best and worst examples, or those on which the runs differ most."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from segjax.report.charts import format_number
from segjax.report.page import picture, section
from segjax.report.results import all_splits
from segjax.report.run import Run, number

_ALL_BYTES = 1_150_000  # all pictures together, before base64, which adds a third
_MOST_PICTURES = 6  # per split


@dataclass(frozen=True)
class _Example:
    """An example with a picture; rank 1 has the highest score of the split's `count` examples."""

    id: str
    score: float | None
    rank: int
    count: int
    path: Path


# A heading, and pictures with their captions.
_Group = tuple[str, list[tuple[str, Path]]]


def examples(runs: Sequence[Run]) -> str:
    """Shows the best and worst examples of each split, or those on which several runs differ most.

    If no evaluation lists pictures, the last ones in `predictions/` are shown.
    """
    groups: list[_Group] = []
    for split in all_splits(runs):
        pictured = [_pictured(run, split) for run in runs]
        differing = _most_different(runs, pictured, split) if len(runs) > 1 else []
        if differing:
            groups += differing
            continue
        for run, found in zip(runs, pictured, strict=True):
            groups += _extremes(found, f"{run.name}, {split}" if len(runs) > 1 else split)
    if not groups:
        groups = [
            (f"Last pictures of {run.name}", [(path.stem, path) for path in last])
            for run in runs
            if (last := run.pictures[-_MOST_PICTURES:])
        ]
    budget = _ALL_BYTES // max(1, sum(len(pictures) for _, pictures in groups))
    parts = []
    for title, pictures in groups:
        parts.append(f"<h3>{escape(title)}</h3>")
        parts += [picture(path, caption, max_bytes=budget) for caption, path in pictures]
    return section("Examples", *parts)


def _pictured(run: Run, split: str) -> list[_Example]:
    """Returns the examples that have pictures, best first; examples without a score come last."""
    listed = run.evaluations.get(split, {}).get("examples") or []
    scored = [(number(example.get("score")), example) for example in listed]
    scored.sort(key=lambda pair: (pair[0] is None, -(pair[0] or 0)))
    return [
        _Example(
            id=str(example.get("id")),
            score=score,
            rank=rank,
            count=len(listed),
            path=run.directory / example["picture"],
        )
        for rank, (score, example) in enumerate(scored, start=1)
        if example.get("picture")
    ]


def _captioned(pictured: Sequence[_Example]) -> list[tuple[str, Path]]:
    return [
        (
            f"{each.id} · score {format_number(each.score)}, rank {each.rank} of {each.count}",
            each.path,
        )
        for each in pictured
    ]


def _extremes(pictured: Sequence[_Example], where: str) -> list[_Group]:
    if not pictured:
        return []
    if pictured[0].count <= _MOST_PICTURES:
        return [(f"{where}: best first", _captioned(pictured))]
    half = _MOST_PICTURES // 2
    best = pictured[: min(half, -(-len(pictured) // 2))]
    worst = [each for each in pictured[len(best) :] if each.score is not None][: -half - 1 : -1]
    groups = [(f"{where}: best of those pictured", _captioned(best))]
    if worst:
        groups.append((f"{where}: worst of those pictured, worst first", _captioned(worst)))
    return groups


def _most_different(
    runs: Sequence[Run], pictured: Sequence[Sequence[_Example]], split: str
) -> list[_Group]:
    """Returns the examples pictured in all runs whose scores differ most, one group each."""
    by_id = [{each.id: each for each in found if each.score is not None} for found in pictured]
    common = [key for key in by_id[0] if all(key in found for found in by_id)]
    spread = {}
    for key in common:
        scores = [score for found in by_id if (score := found[key].score) is not None]
        spread[key] = max(scores) - min(scores)
    return [
        (
            f"{split}, example {key}: scores differ by {format_number(spread[key])}",
            [
                (f"{run.name} · score {format_number(found[key].score)}", found[key].path)
                for run, found in zip(runs, by_id, strict=True)
            ],
        )
        for key in sorted(common, key=lambda key: -spread[key])[: _MOST_PICTURES // len(runs) or 1]
    ]
