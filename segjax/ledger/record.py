"""Turns finished runs into the record of a row: a JSON file of everything behind its numbers."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segjax.files.atomic import write_json
from segjax.ledger.rows import Ledger, Row
from segjax.messages.lists import few
from segjax.report.run import Run, load_runs
from segjax.training.logging import from_json, json_ready
from segjax.training.run_directory import read_config

CURVE_POINTS = 60
# What is kept of a run's environment.
_ENVIRONMENT = (
    *("python", "platform", "processor", "cpu_count", "backend", "device_kind"),
    *("device_count", "process_count"),
)


@dataclass(frozen=True)
class Score:
    """A metric of a row's runs.

    Attributes:
      values: the value of each run.
      interval: the 95 % interval over images, averaged over runs; None if there is none.
    """

    values: tuple[float, ...]
    interval: tuple[float, float] | None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over runs; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def record_runs(ledger: Ledger, row: Row, directories: Sequence[Path]) -> Path:
    """Writes the record of a row from its runs, which replaces an earlier record.

    Returns:
      The path of the record.

    Raises:
      ValueError: a run is unfinished, differs from the row's command in more than the seed, ran
        with uncommitted changes, or lacks the row's evaluation or metrics; or two runs have the
        same seed.
      FileNotFoundError: a directory is not a run directory.
    """
    runs = load_runs(directories)
    entries = [_entry(row, run) for run in runs]
    seeds = [entry["seed"] for entry in entries]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}; expected a seed of its own for each")
    entries.sort(key=lambda entry: entry["seed"])
    content = {
        "row": row.id,
        "recorded": datetime.date.today().isoformat(),
        "runs": entries,
    }
    return write_json(ledger.record_path(row), json_ready(content))


def read_record(ledger: Ledger, row: Row) -> list[dict[str, Any]] | None:
    """Returns the recorded runs of a row; None if it has none.

    Raises:
      ValueError: the record is damaged, or of another row.
    """
    path = ledger.record_path(row)
    if not path.exists():
        return None
    try:
        content = from_json(json.loads(path.read_text(encoding="utf-8")))
        if content["row"] != row.id:
            raise ValueError(f"it is of row {content['row']!r}")
        return content["runs"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); record the runs again with segjax record"
        ) from error


def score(runs: Sequence[Mapping], metric: str) -> Score | None:
    """Returns a metric over recorded runs; None if a run has none."""
    values = [run["metrics"].get(metric) for run in runs]
    if any(value is None for value in values):
        return None
    found = [run["intervals"].get(metric) for run in runs]
    interval = None
    if all(found):
        low, high = (statistics.fmean(ends) for ends in zip(*found, strict=True))
        interval = low, high
    return Score(tuple(values), interval)


def _entry(row: Row, run: Run) -> dict[str, Any]:
    """Describes a run.

    Raises:
      ValueError: see `record_runs`.
    """
    recorded = read_config(run.directory)
    _check_configuration(row, run, recorded)
    environment = run.environment
    evaluation = run.evaluations.get(row.evaluation)
    if evaluation is None:
        how = f"run: {row.evaluate}" if row.evaluate else "let the run reach its end"
        raise ValueError(f"{run.directory} has no evaluation {row.evaluation!r}; {how}")
    metrics = {k: v for k, v in evaluation["metrics"].items() if isinstance(v, int | float)}
    for metric in row.measures:
        if metric not in metrics:
            raise ValueError(
                f"{run.directory}: its evaluation {row.evaluation!r} has no metric {metric!r}; "
                f"there are {few(list(metrics), most=20)}"
            )
    commits = _commits(run, evaluation)
    seconds, steps = run.seconds, run.last_step
    return {
        "seed": run.config["seed"],
        "command": recorded["command"],
        "steps": steps,
        "stopped": run.stopped,
        "evaluation": row.evaluation,
        "evaluated_step": evaluation["step"],
        "images": len(evaluation.get("examples", [])),
        "metrics": metrics,
        "intervals": evaluation.get("intervals", {}),
        "curves": _curves(run),
        "wall_seconds": seconds,
        "steps_per_second": steps / seconds if steps and seconds else None,
        "images_per_second": run.images_per_second,
        "peak_memory_bytes": environment.get("peak_memory_bytes"),
        "commits": commits,
        "environment": {name: environment.get(name) for name in _ENVIRONMENT},
        "versions": {
            name.removeprefix("versions."): value
            for name, value in environment.items()
            if name.startswith("versions.")
        },
    }


def _check_configuration(row: Row, run: Run, recorded: Mapping) -> None:
    if not recorded["experiment"].endswith(row.experiment):
        raise ValueError(
            f"{run.directory} is a run of {recorded['experiment']}; row {row.id!r} is of "
            f"{row.experiment}"
        )
    differences = row.differences(recorded["config"])
    if differences:
        raise ValueError(
            f"{run.directory} differs from the command of row {row.id!r} (row -> run): "
            f"{few(differences, most=8)}"
        )
    if run.stopped is None and (run.last_step or 0) < (run.num_steps or 0):
        raise ValueError(
            f"{run.directory} is unfinished: step {run.last_step} of {run.num_steps}; the same "
            "command again resumes it"
        )


def _commits(run: Run, evaluation: Mapping) -> list[str]:
    """Returns the commits of the run's parts and of its evaluation, oldest first.

    Raises:
      ValueError: one is unknown or had uncommitted changes.
    """
    stored = json.loads((run.directory / "environment.json").read_text(encoding="utf-8"))
    parts = [*stored.get("earlier", []), stored]
    found = [part.get("commit") for part in parts]
    if "commit" in evaluation:
        found.append(evaluation["commit"])
    for commit in found:
        if commit is None:
            raise ValueError(
                f"{run.directory} ran without a known commit; expected a run from a git checkout"
            )
        if " " in commit:
            raise ValueError(
                f"{run.directory} ran at {commit}, so nobody can repeat it; commit first, then "
                "run again"
            )
    return [*dict.fromkeys(found)]


def _curves(run: Run) -> dict[str, dict[str, list]]:
    """Returns the training loss and the headline metrics of the splits, thinned."""
    headlines = {(name, evaluation.get("headline")) for name, evaluation in run.evaluations.items()}
    curves = {}
    for split, metric in [("train", "loss"), *sorted(headlines, key=str)]:
        steps, values = run.curve(metric, split) if metric else ([], [])
        if steps:
            kept = _thinned(len(steps))
            curves[f"{split} {metric}"] = {
                "steps": [steps[place] for place in kept],
                "values": [values[place] for place in kept],
            }
    return curves


def _thinned(count: int) -> list[int]:
    """Returns at most `CURVE_POINTS` places out of `count`, evenly spaced, with first and last."""
    if count <= CURVE_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
