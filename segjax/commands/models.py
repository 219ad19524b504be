"""Loads a trained model for the commands that apply one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.settings import read_settings, refuse_fixed, refuse_unknown

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.trained import TrainedRun

CHECKPOINT_HELP = (
    "The run's checkpoint to use: best (by the experiment's metric, on the split scored during "
    "training), last, or the number of a step."
)
Checkpoint = Annotated[str, tyro.conf.arg(metavar="best|last|STEP", help=CHECKPOINT_HELP)]
BatchSize = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help="Number of tiles or images that a device predicts at a time.",
        help_behavior_hint="(default: the run's train.eval_batch_size, or 1 without a run)",
    ),
]
DataDir = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="DIR",
        help="Folder of the prepared data sets.",
        help_behavior_hint="(default: the run's)",
    ),
]


def check_batch_size(batch_size: int | None) -> None:
    """Raises UserError for a batch size below 1."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: expected at least 1")


def load_trained_run(
    run: Path,
    checkpoint: str,
    *,
    data_dir: Path | None = None,
    settings: Sequence[str] = (),
) -> "TrainedRun":
    """Sets JAX up for this process and loads a run; see `segjax.load_run`.

    Args:
      settings: pairs such as "prediction.output_stride=8"; values are JSON.

    Raises:
      UserError: for what `segjax.load_run` raises, and for a setting other than those of
        prediction, the choice of detections, the range of pixels and paths.
    """
    from segjax.trained import load_run
    from segjax.training.configuration import UnknownSetting
    from segjax.training.set_up import set_up_alone

    changes = read_settings(settings)
    set_up_alone()
    with user_errors():
        try:
            trained = load_run(run, checkpoint, data_dir=data_dir, settings=changes)
        except UnknownSetting:
            refuse_unknown(changes, run)
            raise
    refuse_fixed(changes, trained.config)
    return trained


def open_split(trained: "TrainedRun", split: str):
    """Opens an evaluation split of a run.

    Raises:
      UserError: its data cannot be opened; the message names the flags for data that has moved.
    """
    from segjax.training.configuration import paths

    try:
        with user_errors():
            return trained.experiment.evaluation[split]()
    except UserError as error:
        names = paths(trained.config)
        others = [n for n in names if n != "data_dir" and not n.startswith("initial.")]
        flags = "--data-dir DIR"
        flags += f", or --set KEY=PATH with {', '.join(others)}" if others else ""
        raise UserError(f"{split}: {error} (if the data has moved: {flags})") from error


def load_weights(name: str, weights: Path) -> "Pretrained":
    """Sets JAX up for this process and converts a file of weights trained elsewhere.

    Args:
      name: one of `segjax.pretrained.SOURCES`.
      weights: the file.

    Raises:
      UserError: there is no such name or file, the weights do not fit, or they are a backbone's.
    """
    from segjax import pretrained
    from segjax.training.set_up import set_up_alone

    set_up_alone()
    with user_errors():
        converted = pretrained.load(name, weights)
    if converted.task is None:
        raise UserError(
            f"{name} is a backbone without a classifier, so it cannot predict; training can start "
            "from it (--initial.name, --initial.weights)"
        )
    return converted
