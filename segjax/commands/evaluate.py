"""`segjax evaluate`: scores a trained model on its experiment's splits."""

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.coco_results import write_results
from segjax.commands.errors import UserError
from segjax.commands.models import (
    BatchSize,
    Checkpoint,
    DataDir,
    check_batch_size,
    load_trained_run,
    open_split,
)
from segjax.commands.settings import Settings


def evaluate_command(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN", help_behavior_hint="")],
    /,
    *,
    split: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all of them)"),
    ] = (),
    checkpoint: Checkpoint = "best",
    data_dir: DataDir = None,
    batch_size: BatchSize = None,
    output: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the run directory)"),
    ] = None,
    settings: Settings = (),
) -> None:
    """Score a trained model on the splits of its experiment.

    Writes the scores to RUN/evaluation, and refreshes RUN/predictions and RUN/report.html.

    A detector's results are written beside the scores, as evaluation/detections/SPLIT.json in
    COCO's result format, with the ids of the split's own data.

    Args:
      run: Run directory: the --workdir of a training, which may still be in progress.
      split: Splits of the experiment to score.
      output: Folder for the scores and pictures, for a run directory that you cannot write to. The
        run's report then stays as it is.
      settings: Settings of prediction that differ from the run's, such as
        prediction.output_stride=8, network.detections.score_threshold=0.5 for a detector, or
        network.pixel_range=[0,65535] for images of 16 bits; values are JSON. Their scores are kept
        beside the run's own. A path of data that has moved is set as well: files.val_images=DIR.
    """
    check_batch_size(batch_size)
    trained = load_trained_run(run, checkpoint, data_dir=data_dir, settings=settings)

    from segjax.report import write_report
    from segjax.training.evaluate import Evaluator, write_evaluation
    from segjax.training.parallel import DataParallel

    experiment = trained.experiment
    for name in split:
        if name not in experiment.evaluation:
            known = ", ".join(experiment.evaluation)
            raise UserError(f"--split {name}: the experiment of {run} has {known}")
    folder = output or run
    _check_writable(folder)
    sources = {name: open_split(trained, name) for name in split or experiment.evaluation}
    print(f"evaluating {trained.description}")
    parallel = DataParallel(matmul_precision=trained.config.matmul_precision)
    batch_size = batch_size or trained.config.train.eval_batch_size
    evaluator = Evaluator(experiment.task, parallel, batch_size=batch_size, workdir=folder)
    variables = parallel.replicate(trained.variables)
    results, paths, notes = [], [], []
    for name, source in sources.items():
        label = "@".join([name, *_short(settings)])
        result = evaluator.evaluate(variables, source, split=label, step=trained.step)
        results.append(result)
        paths.append(
            write_evaluation(
                result,
                classes=experiment.task.classes,
                headline=experiment.best_metric,
                workdir=folder,
            )
        )
        notes += write_results(
            result.evaluator, source, experiment.task, split=label, folder=folder / "evaluation"
        )
    print(f"\n{score_table(results, first=experiment.best_metric)}\n")
    print(f"numbers   {', '.join(map(str, paths))}")
    print(f"pictures  {folder / 'predictions'}")
    for note in notes:
        print(note)
    if output is None:
        print(f"report    {write_report(run, run / 'report.html')}")


def _check_writable(folder: Path) -> None:
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


def _short(settings: Sequence[str]) -> list[str]:
    """Shortens settings for a file name: prediction.scales=[1, 2] becomes scales=1,2.

    A path has no part in it: data that has moved is the same.
    """
    groups = ("prediction.", "network.")
    changed = [s.partition(".")[2] for s in settings if s.startswith(groups)]
    return [re.sub(r"[^\w.=,-]", "", s) for s in changed]


def score_table(results: Sequence, *, first: str) -> str:
    """Formats evaluations as text: a column for each split, the score named `first` on top."""
    names = dict.fromkeys(name for result in results for name in result.scalars)
    rows = [["", *(f"{result.split} ({len(result.examples)})" for result in results)]]
    for name in sorted(names, key=lambda name: name != first):
        rows.append([name, *(_number(result.scalars.get(name)) for result in results)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        for name, *cells in rows
    )


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
