"""`predict.json`: the model and the settings that made the files of a folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segjax.commands.errors import UserError
from segjax.files.atomic import write_json
from segjax.files.nested import flatten

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained

NAME = "predict.json"


def make_record(
    trained: "Pretrained",
    *,
    model: str,
    weights: Path | None,
    step: int | None,
    settings: dict,
    orientation: str,
) -> dict[str, Any]:
    """Returns what decides the predictions, as JSON values.

    Args:
      trained: the model as it predicts.
      model: the run directory, or the name of a model trained elsewhere.
      weights: the file of that model's weights, or None for a run.
      step: the step of the run's checkpoint.
      settings: the settings that differ from the run's or the weights' own.
      orientation: how images are read.
    """
    pixel_range = getattr(trained.task, "pixel_range", None)
    return {
        "model": str(Path(model).resolve()) if weights is None else model,
        "weights": None if weights is None else str(weights.resolve()),
        "step": step,
        "settings": settings,
        "orientation": orientation,
        "pixel_range": None if pixel_range is None else list(pixel_range),
    }


def refuse_other_record(output: Path, record: dict[str, Any], *, overwrite: bool) -> None:
    """Raises UserError if a folder holds predictions of another model or of other settings."""
    path = output / NAME
    if overwrite or not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old = flatten({name: before[name] for name in record})
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise UserError(
            f"{path} exists already, and is no record of predictions; choose another --output, or "
            "replace it with --overwrite"
        ) from error
    new = flatten(record)
    for values in (old, new):
        if values.get("settings") == {}:  # `flatten` keeps an empty dict
            del values["settings"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if names:
        found = ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)
        raise UserError(
            f"{path}: the files beside it were predicted otherwise ({found}); choose another "
            "--output, or replace them with --overwrite"
        )


def write_record(output: Path, record: dict[str, Any]) -> Path:
    """Writes the record, and the versions that compute the predictions."""
    from segjax.training.run_directory import environment

    return write_json(output / NAME, record | {"environment": environment()})
