"""Reading run directories for the report, with notes on what is missing."""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segjax.files.nested import flatten
from segjax.training.logging import from_json, read_metrics

# The score that represents a run whose evaluation names no "headline" is the first of these that
# it has, or else its first score.
_HEADLINES = ("mask_AP", "seg", "foreground_iou", "mean_iou")
# Logged values that are not scores.
_NOT_SCORES = ("step", "elapsed_seconds", "images_per_second", "learning_rate")


@dataclass(frozen=True)
class Run:
    """The contents of one run directory.

    Attributes:
        name: short name, unique among the runs of a report.
        directory: path of the run directory.
        config: the resolved configuration, flat: {"train.num_steps": 400}.
        command: the command line that started the run; None if unknown.
        environment: versions, commit and devices, flat.
        metrics: the objects of `metrics.jsonl`, in order.
        evaluations: the object of each `evaluation/<split>.json`, by split.
        pictures: paths of `predictions/*.png`, sorted by name.
        missing: one sentence for each file that is missing or unreadable.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    command: str | None
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]
    pictures: Sequence[Path]
    missing: Sequence[str]

    @property
    def last_step(self) -> int | None:
        """The last step that was logged or evaluated."""
        entries = [*self.metrics, *self.evaluations.values()]
        return max((int(entry["step"]) for entry in entries if "step" in entry), default=None)

    @property
    def num_steps(self) -> int | None:
        """The number of steps in the configuration."""
        return self.config.get("train.num_steps")

    @property
    def stopped(self) -> str | None:
        """Why the run stopped early, if it did so at its last step; see `train.stop_after`."""
        lines = [entry for entry in self.metrics if entry["step"] == self.last_step]
        return next((entry["stopped"] for entry in lines if "stopped" in entry), None)

    @property
    def seconds(self) -> float | None:
        """The time from the start to the last line of the log, without pauses before resuming."""
        return max(filter(None, self.curve("elapsed_seconds")[1]), default=None)

    @property
    def images_per_second(self) -> float | None:
        """The median of the logged training speeds."""
        speeds = sorted(filter(None, self.curve("images_per_second", "train")[1]))
        return speeds[len(speeds) // 2] if speeds else None

    def splits(self) -> list[str]:
        """The splits with scores: test, validation, others by first appearance, then train."""
        found = dict.fromkeys([*self.evaluations, *(entry["split"] for entry in self.metrics)])
        order = {"test": 0, "validation": 1, "train": 3}
        return sorted(
            (s for s in found if s != "train" or "train" in self.evaluations),
            key=lambda split: order.get(split, 2),
        )

    def scores(self, split: str) -> tuple[int | None, dict[str, float | None]]:
        """The step and final scores of a split, from its evaluation or else its last log line."""
        if split in self.evaluations:
            evaluation = self.evaluations[split]
            return evaluation.get("step"), scalars(evaluation.get("metrics", {}))
        lines = [entry for entry in self.metrics if entry["split"] == split]
        return (lines[-1]["step"], scalars(lines[-1])) if lines else (None, {})

    def intervals(self, split: str) -> dict[str, list[float]]:
        """The 95 % intervals [low, high] over images of a split's final scores."""
        return dict(self.evaluations.get(split, {}).get("intervals", {}))

    def curve(self, metric: str, split: str | None = None) -> tuple[list[int], list[float | None]]:
        """Steps and values of a metric over the run; undefined values are None."""
        lines = [
            entry
            for entry in self.metrics
            if metric in entry and split in (None, entry["split"]) and is_scalar(entry[metric])
        ]
        return [int(entry["step"]) for entry in lines], [number(entry[metric]) for entry in lines]


def load_runs(directories: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads run directories.

    Raises:
        ValueError: no directory is given, or one is given twice; a directory holds none of a run's
            files; or a confusion matrix does not fit its classes.
        FileNotFoundError: a directory does not exist.
    """
    paths = [Path(directory).resolve() for directory in directories]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"expected one or more different run directories, got {list(directories)}")
    return [_load(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _load(directory: Path, name: str) -> Run:
    if not directory.is_dir():
        raise FileNotFoundError(f"no run directory at {directory}")
    missing: list[str] = []
    config = _read(directory / "config.json", missing) or {}
    environment = _read(directory / "environment.json", missing) or {}
    evaluations = {}
    for path in sorted((directory / "evaluation").glob("*.json")):
        if evaluation := _read(path, missing):
            _check_matrix(path, evaluation)
            evaluations[str(evaluation.get("split", path.stem))] = evaluation
    if not evaluations:
        missing.append(
            "There is no evaluation/*.json: the run has not reached its evaluation. "
            "Scores come from the last evaluation in metrics.jsonl, if there is one."
        )
    metrics = []
    try:
        metrics = read_metrics(directory / "metrics.jsonl")
        if not metrics:
            missing.append("metrics.jsonl is empty: no step has been logged yet.")
    except FileNotFoundError:
        missing.append("There is no metrics.jsonl: no step has been logged.")
    except ValueError as error:
        missing.append(f"metrics.jsonl cannot be read: {error}.")
    pictures = sorted((directory / "predictions").glob("*.png"))
    if not pictures:
        missing.append("There are no pictures in predictions/.")
    if not (config or environment or evaluations or metrics or pictures):
        raise ValueError(f"{directory} is not a run directory: it has none of a run's files")
    command = config.get("command")
    return Run(
        name=name,
        directory=directory,
        config=flatten(config.get("config", config)),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command,
        environment=flatten(environment),
        metrics=metrics,
        evaluations=evaluations,
        pictures=pictures,
        missing=missing,
    )


def _read(path: Path, missing: list[str]) -> dict[str, Any] | None:
    name = path.relative_to(path.parents[1 if path.parent.name == "evaluation" else 0])
    try:
        content = from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        missing.append(f"There is no {name}.")
        return None
    except ValueError as error:
        missing.append(f"{name} cannot be read: {error}.")
        return None
    if not isinstance(content, dict):
        missing.append(f"{name} holds no JSON object.")
        return None
    return content


def _check_matrix(path: Path, evaluation: Mapping[str, Any]) -> None:
    matrix = evaluation.get("confusion_matrix") or []
    size = len(evaluation.get("classes") or matrix)
    if matrix and [len(row) for row in matrix] != [size] * size:
        raise ValueError(
            f"{path}: expected a confusion matrix of {size} × {size} for its {size} classes, "
            f"got rows of {[len(row) for row in matrix]}"
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """Names each run by the shortest end of its path that tells the runs apart."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = [str(Path(*path.parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differing(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the keys on which mappings differ, each with all values (None if absent)."""
    keys = dict.fromkeys(key for mapping in values for key in mapping)
    rows = {key: [mapping.get(key) for mapping in values] for key in keys}
    return {key: row for key, row in rows.items() if any(item != row[0] for item in row)}


def number(value: Any) -> float | None:
    """Returns a finite number unchanged, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def is_scalar(value: Any) -> bool:
    """Returns whether a metric's value is a single number or undefined."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def scalars(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the scores that are single numbers; undefined ones are None."""
    return {
        name: number(value)
        for name, value in metrics.items()
        if name not in _NOT_SCORES and is_scalar(value)
    }


def headline(runs: Sequence[Run], split: str) -> str | None:
    """Returns the name of the score to compare runs by on a split; None without scores."""
    named = [run.evaluations.get(split, {}).get("headline") for run in runs]
    found = [item for run in runs for item in run.scores(split)[1].items()]
    defined = [name for name, value in found if value is not None]
    candidates = [*named, *_HEADLINES, *sorted(defined, key=lambda name: "loss" in name)]
    return next((name for name in candidates if name in defined), None)
