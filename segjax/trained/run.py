"""Trained models: loads one from a run directory or a published folder, and predicts sources.

::

    run = segjax.load_run("runs/v3")
    labels = run.predict(photo)["labels"]
    for example, prediction in segjax.predict_all(run, run.experiment.evaluation["val"]()):
        ...
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import jax

from segjax.data.checks.examples import check_for
from segjax.data.loading.loader import evaluation_examples
from segjax.data.orientation import Orientation
from segjax.messages.hints import nearest
from segjax.messages.lists import few
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.published import Published, is_published, load_published
from segjax.training.checkpoint import Checkpoints
from segjax.training.configuration import ExperimentConfig
from segjax.training.evaluate import Evaluator
from segjax.training.experiment import Experiment, load_experiment
from segjax.training.state import TrainState
from segjax.training.strategies import strategy_for

NAMES_SHOWN = 8  # in an error that lists files or runs


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedRun(Pretrained):
    """The model of a run with the variables of one of its checkpoints.

    Attributes:
      experiment: the run's experiment; `experiment.evaluation` opens its evaluation splits by name.
      config: the run's configuration.
      step: the step of the checkpoint.
      description: the run directory, the step and the score of the checkpoint as one line of text.
      pixels: the "types" of the training images, such as ["uint8"], and their "range" of values, as
        far as they were read before the first step; empty for a run of an earlier version.
    """

    experiment: Experiment
    config: ExperimentConfig
    step: int
    description: str
    pixels: Mapping[str, list]

    @property
    def orientation(self) -> Orientation:
        """How `segjax predict` reads image files with an EXIF orientation."""
        return self.experiment.orientation

    @property
    def eval_batch_size(self) -> int:
        """Tiles or images that a device predicts at a time."""
        return self.config.train.eval_batch_size


def load_run(
    path: str | Path,
    checkpoint: str | int = "best",
    *,
    data_dir: str | Path | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> TrainedRun | Published:
    """Loads the trained model of a run directory or of a published folder.

    A published folder has neither `experiment` nor `config`, and nothing in it is executed; see
    `segjax.pretrained.published`.

    The run may still be in progress: nothing in its directory is written or removed. It may have
    moved: it keeps a copy of its experiment for when the original has changed or gone. The
    experiment file is executed, so load only runs whose experiment you trust.

    Args:
      path: the run directory, the `--workdir` of a training; or a folder of `segjax publish`, which
        has one checkpoint and takes none of the other arguments.
      checkpoint: "best" (by the run's best metric; the newest if none was scored), "last",
        or the number of a step.
      data_dir: folder of the prepared data sets, if they have moved since the training. Only
        `experiment.evaluation` and `experiment.train` read it.
      settings: settings of prediction that differ from the run's, and paths of data that has moved,
        by dotted name: {"prediction.output_stride": 8}.

    Raises:
      FileNotFoundError: `path` is neither, the run's experiment file is gone, or it has no
        checkpoint yet.
      ValueError: there is no such checkpoint or setting, or a module that the experiment imports is
        neither beside it nor installed.
      DamagedCheckpoint: the checkpoint is not as it was written.
    """
    path = Path(path)
    if is_published(path):
        if checkpoint != "best" or data_dir is not None or settings:
            raise ValueError(
                f"{path} is a published folder, which has one checkpoint and no settings of a run"
            )
        return load_published(path)
    _check_is_run(path)
    data_dir = None if data_dir is None else Path(data_dir)
    experiment, config = load_experiment(path, data_dir=data_dir, changes=settings)
    if not (path / "checkpoints").is_dir():
        raise _no_checkpoint(path)
    with Checkpoints(
        path / "checkpoints",
        best_metric=experiment.best_metric,
        minimize=experiment.minimize,
        read_only=True,
    ) as checkpoints:
        step = _chosen_step(checkpoints, checkpoint, path)
        variables = TrainState(**checkpoints.read(step)).variables
        pixels = checkpoints.data(step).get("pixels", {})
        notes = ["last"] if step == checkpoints.latest_step else []
        if checkpoint == "best":
            score = checkpoints.score(step)
            split = [*config.train.eval_splits, *experiment.evaluation][0]
            best = f"best {experiment.best_metric} on {split}"
            notes.append("none was scored" if score is None else f"{best}: {score:.4f}")
    task: Any = experiment.task
    return TrainedRun(
        # A task of the user's own may have neither.
        model=cast(Any, getattr(task, "model", None)),
        preprocess=cast(Any, getattr(task, "preprocess", None)),
        variables=variables,
        task=task,
        dtypes=check_for(experiment.task).dtypes,
        matmul_precision=config.matmul_precision,
        experiment=experiment,
        config=config,
        step=step,
        description=f"{path}, checkpoint of step {step}" + (f" ({'; '.join(notes)})" * bool(notes)),
        pixels=pixels,
    )


def predict_all(
    model: Pretrained,
    source: Sequence[dict] | Iterator[dict],
    *,
    batch_size: int = 1,
    rows: int = 1,
) -> Iterator[tuple[dict, dict]]:
    """Predicts every example of a source, in order, on all devices of this process.

    Args:
      model: a trained model, from `load_run` or `segjax.pretrained.load`.
      source: examples with an "image" [height, width, channels], of any sizes: an object with
        `__len__` and a thread-safe `__getitem__`, such as an evaluation split, which two threads
        read ahead; or an iterator.
      batch_size: tiles or images at a time, per device or group of devices that share them.
      rows: number of devices that share the rows of each tile or image, so that it may be larger
        than one of them holds.

    Yields:
      (example, prediction); see `Pretrained.predict` for the entries of a prediction.

    Raises:
      ValueError: the model is a backbone, `batch_size` is below 1, or `rows` does not fit the
        devices or the model.
      RuntimeError: an example cannot be read; the message names it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected at least 1")
    task, precision = model.segmenter, model.matmul_precision
    devices = tuple(jax.local_devices())
    parallel = strategy_for(task, rows, devices=devices, matmul_precision=precision)
    evaluator = Evaluator(task, parallel, batch_size=batch_size, workdir=None)
    if not isinstance(source, Iterator):
        source = (example for _, example in evaluation_examples(source))
    variables = parallel.local(parallel.replicate(model.variables))
    return evaluator.predictions(variables, source)


def _check_is_run(path: Path) -> None:
    """Raises FileNotFoundError, which names what is there instead, unless `path` is a run."""
    if (path / "config.json").is_file():
        return
    if path.is_dir():
        runs = _runs_in(path)
        holds = f"it holds the runs {few(runs, most=NAMES_SHOWN)}" if runs else _contents(path)
        found = f"it has no config.json; {holds}"
    elif path.exists():
        found = "it is a file"
    else:
        beside = _runs_in(path.parent)
        close = nearest(path.name, beside)
        found = "no such folder"
        if close:
            found += f"; did you mean {str(path.parent / close)!r}?"
        elif beside:
            found += f"; runs beside it: {few(beside, most=NAMES_SHOWN)}"
    raise FileNotFoundError(f"{path} is not a run directory (the --workdir of a training): {found}")


def _no_checkpoint(path: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{path} has no checkpoint yet; {_contents(path)}")


def _chosen_step(checkpoints: Checkpoints, checkpoint: str | int, path: Path) -> int:
    """The step that the caller's word or number means."""
    best, last = checkpoints.best_step, checkpoints.latest_step
    if best is None or last is None:
        raise _no_checkpoint(path)
    steps = ", ".join(map(str, checkpoints.steps))
    if checkpoint == "best":
        return best
    if checkpoint in ("last", "latest"):  # Orbax's word, which commands of older runs have
        return last
    if not str(checkpoint).isdecimal():
        raise ValueError(
            f"checkpoint {checkpoint}: expected best, last or a step; {path} has steps {steps}"
        )
    if int(checkpoint) not in checkpoints.steps:
        raise ValueError(f"{path} has no checkpoint of step {checkpoint}; it has steps {steps}")
    return int(checkpoint)


def _runs_in(folder: Path) -> list[str]:
    """The names of the run directories in a folder."""
    return sorted(config.parent.name for config in folder.glob("*/config.json"))


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"it holds {few(names, most=NAMES_SHOWN)}" if names else "it is empty"
