"""Loads a trained model for the commands that apply one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.settings import read_settings, refuse_fixed, refuse_unknown, with_settings
from segjax.messages.hints import did_you_mean

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.pretrained.published import Published
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
Rows = Annotated[
    int,
    tyro.conf.arg(
        name="parallel.rows",
        metavar="N",
        help="Number of devices that share the rows of each tile or image, so that it may be "
        "larger than one of them holds.",
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

Download = Annotated[
    bool,
    tyro.conf.arg(
        help="Download the published weights of NAME if they are not on this machine.",
        help_behavior_hint="(with a NAME)",
    ),
]


def check_batch_size(batch_size: int | None) -> None:
    """Raises UserError for a batch size below 1."""
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: expected at least 1")


def check_rows(rows: int, trained: "Pretrained") -> None:
    """Raises UserError unless so many devices can share the rows of a model's images."""
    from segjax.training.strategies import strategy_for

    with user_errors():
        strategy_for(trained.segmenter, rows)


def load_trained_run(
    run: Path,
    checkpoint: str,
    *,
    data_dir: Path | None = None,
    settings: Sequence[str] = (),
) -> "TrainedRun | Published":
    """Sets JAX up for this process and loads a run or a published folder; see `segjax.load_run`.

    Args:
      settings: pairs such as "prediction.output_stride=8"; values are JSON.

    Raises:
      UserError: for what `segjax.load_run` raises, and for a setting other than those of
        prediction, the choice of detections, the range of pixels and paths.
    """
    from segjax.pretrained.published import is_published
    from segjax.trained import load_run
    from segjax.training.configuration import UnknownSetting
    from segjax.training.set_up import set_up_alone

    changes = read_settings(settings)
    set_up_alone()
    if is_published(run):
        with user_errors():
            published = load_run(run, checkpoint, data_dir=data_dir)
        return with_settings(published, changes)
    with user_errors():
        try:
            trained = load_run(run, checkpoint, data_dir=data_dir, settings=changes)
        except UnknownSetting:
            refuse_unknown(changes, run)
            raise
    refuse_fixed(changes, trained.config)
    return trained


def load_with_splits(run: Path, checkpoint: str, **options) -> "TrainedRun":
    """Loads a run, for commands that read its experiment's splits; see `load_trained_run`.

    Raises:
      UserError: as `load_trained_run`; or `run` is a published folder, which has no splits.
    """
    from segjax.trained import TrainedRun

    trained = load_trained_run(run, checkpoint, **options)
    if not isinstance(trained, TrainedRun):
        raise UserError(
            f"{run} is a published folder, which has no splits of its own: score it on images and "
            "masks (segjax evaluate FOLDER --images DIR --masks DIR --output DIR)"
        )
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


def find_weights(model: str, weights: Path | None, *, download: bool) -> Path | None:
    """Returns the file of weights of a model that is named; None if the model is a run.

    Args:
      model: a run directory, or the name of weights.
      weights: the file that the user names, or None.
      download: download published weights that are not on this machine.

    Raises:
      UserError: the weights of this name are not on this machine, the download failed, or the
        options contradict each other.
    """
    from segjax.weights.known import KNOWN, find

    if weights is not None:
        if download:
            raise UserError(
                "--download gets the file by itself; leave out --weights, or --download"
            )
        return weights
    if Path(model).exists() or find(model) is None:
        if download:
            hint = did_you_mean(model, KNOWN) or "."
            raise UserError(f"--download: {model} is no name of `segjax weights list`{hint}")
        return None
    with user_errors():
        from segjax.pretrained import find_file

        return find_file(model, download=download)


def load_weights(name: str, weights: Path) -> "Pretrained":
    """Sets JAX up for this process and converts a file of weights trained elsewhere.

    Args:
      name: one of `segjax.pretrained.SOURCES`, or of the published weights.
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
            "from it (--initial.name)"
        )
    return converted
