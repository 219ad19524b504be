"""What a run's own files say about its training, for a published folder and its model card.

`training.json` holds, for people and not for programs: "experiment", the name of the experiment
file; "command"; "config", the resolved configuration; "environment", versions, commit and devices.
Absolute paths are cut to their last part, since they tell about a machine and its owner.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segjax.files.nested import flatten, with_value
from segjax.report.run import Run, load_runs, number, scalars
from segjax.trained import TrainedRun
from segjax.training import configuration
from segjax.training.run_directory import read_config

BEST, WORST = 2, 1  # pictures of a split


@dataclass(frozen=True)
class Picture:
    """A picture of an example with its truth and its prediction."""

    path: Path
    caption: str


@dataclass(frozen=True)
class TrainingRecord:
    """What is known about a training.

    Attributes:
      experiment: the name of the experiment file, such as "isbi2012.py".
      command: the command line.
      config: the resolved configuration, nested.
      environment: versions, commit and devices, flat.
      seconds: the time that the training took, or None.
      steps: number of steps of the training, or None.
      checkpoint: such as "step 150 (best seg on validation: 0.9077)".
      scores: by split, the number of "examples" (None if unknown), the name of the "headline" score
        and the "metrics" of the published checkpoint: numbers, or a number for each class.
      pictures: the pictures of the split whose scores come first.
    """

    experiment: str
    command: str
    config: dict[str, Any]
    environment: Mapping[str, Any]
    seconds: float | None
    steps: int | None
    checkpoint: str
    scores: dict[str, dict[str, Any]]
    pictures: tuple[Picture, ...]


def read_record(path: Path, trained: TrainedRun) -> TrainingRecord:
    """Reads a run directory. Only scores and pictures of the loaded checkpoint count.

    Args:
      path: the run directory.
      trained: the run with the checkpoint that is published.
    """
    run, step = load_runs([path])[0], trained.step
    found = read_config(path)
    config = found["config"]
    for name in ("workdir", *configuration.paths(trained.config)):
        if isinstance(value := flatten(config).get(name), str):
            config = with_value(config, name, Path(value).name)
    config.pop("distributed", None)  # addresses of machines
    evaluations = {
        split: evaluation
        for split in run.splits()
        if (evaluation := run.evaluations.get(split, {})).get("step") == step
    }
    return TrainingRecord(
        experiment=Path(found["experiment"]).name,
        command=without_places(found["command"]),
        config=config,
        environment=run.environment,
        seconds=run.seconds,
        steps=run.last_step,
        checkpoint=trained.description.rpartition(", checkpoint of ")[2],
        scores=_scores(run, evaluations, step, classes=len(trained.classes)),
        pictures=_pictures(path, evaluations),
    )


def without_places(command: str) -> str:
    """Returns a command line with absolute paths cut to their last part."""
    words = []
    for word in shlex.split(command):
        flag, equals, value = word.rpartition("=")
        cut = Path(value).name if value.startswith(("/", "~")) else value
        words.append(f"{flag}{equals}{cut}")
    return shlex.join(words)


def _scores(run: Run, evaluations: Mapping, step: int, *, classes: int) -> dict[str, dict]:
    scores = {}
    for split, evaluation in evaluations.items():
        metrics = evaluation.get("metrics", {})
        of_classes = {
            name: [number(each) for each in value]
            for name, value in metrics.items()
            if isinstance(value, list) and len(value) == classes
        }
        scores[split] = {
            "examples": len(evaluation.get("examples") or []),
            "headline": evaluation.get("headline"),
            "metrics": scalars(metrics) | of_classes,
        }
    for line in run.metrics:  # scored during training
        split = line["split"]
        if line["step"] == step and split not in ("train", *evaluations):
            scores[split] = {"examples": None, "headline": None, "metrics": scalars(line)}
    return scores


def _pictures(path: Path, evaluations: Mapping) -> tuple[Picture, ...]:
    """The best and the worst pictured example of the first split that has pictures."""
    for split, evaluation in evaluations.items():
        scored = [
            (score, each["id"], path / each["picture"])
            for each in evaluation.get("examples") or []
            if each.get("picture") and (score := number(each.get("score"))) is not None
        ]
        shown = [each for each in scored if each[2].is_file()]
        shown.sort(key=lambda each: each[0], reverse=True)
        chosen = [("best", each) for each in shown[:BEST]]
        chosen += [("worst", each) for each in shown[BEST:][-WORST:]]
        if chosen:
            return tuple(
                Picture(picture, f"among the {which} of {split}: {name}, score {score:.3f}")
                for which, (score, name, picture) in chosen
            )
    return ()
