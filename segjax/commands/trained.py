"""Finds a trained model again, for the commands that apply one."""

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
        help_behavior_hint="(default: the run's train.eval_batch_size)",
    ),
]


@dataclass(frozen=True)
class TrainedModel:
    """A run's experiment with the variables of one of its checkpoints.

    Attributes:
      experiment: see `segjax.training.experiment`.
      config: the run's configuration.
      parallel: the devices, all of this process.
      variables: what the task predicts with, on all of them.
      step: of the checkpoint.
      description: of the checkpoint, for people.
    """

    experiment: Any
    config: Any
    parallel: Any
    variables: Any
    step: int
    description: str

    def evaluator(self, *, batch_size: int | None, workdir: Path | None):
        """Makes the `Evaluator` of the task; see there."""
        from segjax.training.evaluate import Evaluator

        if batch_size is None:
            batch_size = self.config.train.eval_batch_size
        return Evaluator(
            self.experiment.task, self.parallel, batch_size=batch_size, workdir=workdir
        )


def load_trained(run: Path, checkpoint: str, *, data_dir: Path | None = None) -> TrainedModel:
    """Rebuilds the experiment of a run directory and reads one of its checkpoints.

    The run may be going on: nothing in its directory is written or removed.

    Args:
      checkpoint: "best", "latest" or a step.
      data_dir: where the data sets are now; None takes the run's own.

    Raises:
      UserError: `run` is no run directory, or has no such checkpoint.
    """
    if not (run / "config.json").is_file():
        raise UserError(
            f"{run} is not a run directory: expected the --workdir of a training, which holds "
            "config.json and checkpoints"
        )
    if not (checkpoint in ("best", "latest") or checkpoint.isdecimal()):
        raise UserError(f"--checkpoint {checkpoint}: expected best, latest or a step")

    from segjax.training.checkpoint import Checkpoints
    from segjax.training.configuration import ExperimentConfig
    from segjax.training.experiment import load_run
    from segjax.training.launch import set_up
    from segjax.training.parallel import DataParallel
    from segjax.training.state import TrainState

    # This process is alone, whatever the run was.
    set_up(ExperimentConfig(workdir=run))
    with user_errors():
        experiment, config = load_run(run, data_dir=data_dir)
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    parallel = DataParallel()
    with Checkpoints(
        run / "checkpoints",
        best_metric=experiment.best_metric,
        minimize=experiment.minimize,
        read_only=True,
    ) as checkpoints:
        step = _choose(checkpoints, checkpoint, run)
        fields = checkpoints.read(step, parallel.replicated)
        notes = ["latest"] if step == checkpoints.latest_step else []
        if checkpoint == "best" and (score := checkpoints.score(step)) is not None:
            split = next(iter(experiment.evaluation))
            notes.append(f"best {experiment.best_metric} on {split}: {score:.4f}")
        elif checkpoint == "best":
            notes.append("none has been scored")
    description = f"step {step}" + (f" ({'; '.join(notes)})" if notes else "")
    variables = TrainState(**fields).variables
    return TrainedModel(experiment, config, parallel, variables, step, description)


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
