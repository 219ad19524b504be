"""Scores a model on sources: numbers, pictures and, for detectors, results in COCO's format."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segjax.commands.coco_results import write_results
from segjax.commands.errors import UserError

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.training.precision import MatmulPrecision


def score_sources(
    model: "Pretrained",
    sources: Mapping[str, Any],
    *,
    step: int,
    headline: str,
    folder: Path,
    batch_size: int,
    rows: int = 1,
    matmul_precision: "MatmulPrecision" = "default",
) -> None:
    """Scores a model on each source, writes what comes of it, and prints the table of scores.

    Args:
      model: the model of a run, or converted weights.
      sources: examples with labels or objects, by the name of the evaluation.
      step: the step of the run's checkpoint, for the record; 0 for converted weights.
      headline: the score that comes first.
      folder: the folder for scores and pictures.
      batch_size: tiles or images at a time, per device or group of devices that share them.
      rows: number of devices that share the rows of each tile or image.
      matmul_precision: see `ExperimentConfig`.
    """
    from segjax.training.evaluate import Evaluator, write_evaluation
    from segjax.training.strategies import strategy_for

    task = model.segmenter
    parallel = strategy_for(task, rows, matmul_precision=matmul_precision)
    evaluator = Evaluator(task, parallel, batch_size=batch_size, workdir=folder)
    variables = parallel.replicate(model.variables)
    results, paths, notes = [], [], []
    for name, source in sources.items():
        result = evaluator.evaluate(variables, source, split=name, step=step)
        results.append(result)
        paths.append(
            write_evaluation(result, classes=task.classes, headline=headline, workdir=folder)
        )
        notes += write_results(
            result.evaluator, source, task, split=name, folder=folder / "evaluation"
        )
    print(f"\n{score_table(results, first=headline)}\n")
    print(f"numbers   {', '.join(map(str, paths))}")
    print(f"pictures  {folder / 'predictions'}")
    for note in notes:
        print(note)


def check_writable(folder: Path) -> None:
    """Raises UserError unless scores, pictures and a report can be written to a folder."""
    for place in (folder, folder / "evaluation", folder / "predictions"):
        try:
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise UserError(
                f"{place} cannot be written: {error.strerror}; give --output DIR, where scores and "
                "pictures go instead"
            ) from error


def score_table(results: Sequence, *, first: str) -> str:
    """Formats evaluations as text: a column for each split, the score named `first` on top.

    Brackets hold 95 % intervals over images.
    """
    names = dict.fromkeys(name for result in results for name in result.scalars)
    rows = [["", *(f"{result.split} ({len(result.examples)})" for result in results)]]
    for name in sorted(names, key=lambda name: name != first):
        rows.append([name, *(_cell(result, name) for result in results)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    )


def _cell(result, name: str) -> str:
    """Formats a score and its 95 % interval over images, if it has one."""
    text, interval = _number(result.scalars.get(name)), result.intervals.get(name)
    return text if interval is None else f"{text} [{', '.join(map(_number, interval))}]"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
