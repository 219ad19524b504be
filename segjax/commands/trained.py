"""Finds a trained model again, for the commands that apply one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from segjax.commands.errors import UserError, user_errors

CHECKPOINT_HELP = (
    "Which of the run's checkpoints: best (by the experiment's metric, on the split that it is "
    "scored on along the way), latest, or a step."
)
Checkpoint = Annotated[str, tyro.conf.arg(metavar="best|latest|STEP", help=CHECKPOINT_HELP)]
BatchSize = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help="Tiles or images per device at a time.",
        help_behavior_hint="(default: the run's train.eval_batch_size, or 1)",
    ),
]


@dataclass(frozen=True)
class TrainedModel:
    """A task with trained variables: of a run's checkpoint, or of a file of weights.

    Attributes:
      task: see `segjax.tasks`.
      parallel: the devices, all of this process.
      variables: what the task predicts with, on all of them.
      batch_size: inputs per device at a time, unless the user says otherwise.
      description: of where the variables come from, for people.
      experiment: the experiment of a run; see `segjax.training.experiment`.
      step: the step of a run's checkpoint.
    """

    task: Any
    parallel: Any
    variables: Any
    batch_size: int
    description: str
    experiment: Any = None
    step: int | None = None

    def evaluator(self, *, batch_size: int | None, workdir: Path | None):
        """Makes the `Evaluator` of the task; see there."""
        from segjax.training.evaluate import Evaluator

        if batch_size is None:
            batch_size = self.batch_size
        return Evaluator(self.task, self.parallel, batch_size=batch_size, workdir=workdir)


def load_trained(
    run: Path,
    checkpoint: str,
    *,
    data_dir: Path | None = None,
    settings: Sequence[str] = (),
) -> TrainedModel:
    """Rebuilds the experiment of a run directory and reads one of its checkpoints.

    The run may be going on: nothing in its directory is written or removed.

    Args:
      checkpoint: "best", "latest" or a step.
      data_dir: where the data sets are now; None takes the run's own.
      settings: of prediction, other than the run's: "prediction.output_stride=8". Values are JSON.

    Raises:
      UserError: `run` is no run directory, or has no such checkpoint; or a setting is not one.
    """
    if not (run / "config.json").is_file():
        raise UserError(
            f"{run} is not a run directory: expected the --workdir of a training, which holds "
            "config.json and checkpoints; for weights trained elsewhere give their --weights FILE"
        )
    if not (checkpoint in ("best", "latest") or checkpoint.isdecimal()):
        raise UserError(f"--checkpoint {checkpoint}: expected best, latest or a step")

    from segjax.training.checkpoint import Checkpoints
    from segjax.training.configuration import ExperimentConfig
    from segjax.training.experiment import load_run
    from segjax.training.parallel import DataParallel
    from segjax.training.set_up import set_up
    from segjax.training.state import TrainState

    # This process is alone, whatever the run was.
    set_up(ExperimentConfig(workdir=run))
    with user_errors():
        experiment, config = load_run(run, data_dir=data_dir, changes=_read_settings(settings))
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    parallel = DataParallel()
    with (
        user_errors(),  # a damaged checkpoint
        Checkpoints(
            run / "checkpoints",
            best_metric=experiment.best_metric,
            minimize=experiment.minimize,
            read_only=True,
        ) as checkpoints,
    ):
        step = _choose(checkpoints, checkpoint, run)
        fields = checkpoints.read(step, parallel.replicated)
        notes = ["latest"] if step == checkpoints.latest_step else []
        if checkpoint == "best" and (score := checkpoints.score(step)) is not None:
            split = next(iter(experiment.evaluation))
            notes.append(f"best {experiment.best_metric} on {split}: {score:.4f}")
        elif checkpoint == "best":
            notes.append("none has been scored")
    description = f"{run}, checkpoint of step {step}" + (f" ({'; '.join(notes)})" if notes else "")
    return TrainedModel(
        experiment.task,
        parallel,
        TrainState(**fields).variables,
        config.train.eval_batch_size,
        description,
        experiment=experiment,
        step=step,
    )


def _read_settings(settings: Sequence[str]) -> dict:
    """Reads KEY=VALUE pairs; only how a model predicts may change after its training."""
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.startswith("prediction."):
            raise UserError(
                f"--set {setting}: expected prediction.KEY=VALUE, such as "
                "prediction.output_stride=8; what else the run was trained with stays"
            )
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def load_pretrained(name: str, weights: Path) -> TrainedModel:
    """Converts a file of weights that were trained elsewhere.

    Args:
      name: name of the source and its model; see `segjax.pretrained`.
      weights: the file.

    Raises:
      UserError: there is no such name or file, the weights do not fit, or they are a backbone's.
    """
    from segjax import pretrained
    from segjax.training.configuration import ExperimentConfig
    from segjax.training.parallel import DataParallel
    from segjax.training.set_up import set_up

    set_up(ExperimentConfig(workdir=Path()))
    with user_errors():
        converted = pretrained.load(name, weights)
    if converted.task is None:
        raise UserError(
            f"{name} is a backbone without a classifier: it can start a training "
            "(--initial.name, --initial.weights), and predicts nothing by itself"
        )
    parallel = DataParallel()
    variables = parallel.replicate(converted.variables)
    return TrainedModel(converted.task, parallel, variables, 1, f"{name} from {weights}")


def _choose(checkpoints, checkpoint: str, run: Path) -> int:
    """The step that the user's words mean."""
    if not checkpoints.steps:
        raise UserError(f"{run} has no checkpoint yet")
    if checkpoint == "latest":
        return checkpoints.latest_step
    if checkpoint == "best":
        return checkpoints.best_step
    if int(checkpoint) not in checkpoints.steps:
        kept = ", ".join(map(str, checkpoints.steps))
        raise UserError(f"{run} has no checkpoint of step {checkpoint}; it has those of {kept}")
    return int(checkpoint)
