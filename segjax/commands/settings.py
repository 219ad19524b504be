"""The option --set: settings of prediction that differ from those of a run or of weights.

Names are dotted as in the run's config.json, such as prediction.scales; values are JSON.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from segjax.commands.errors import UserError
from segjax.files.nested import flatten
from segjax.messages.hints import nearest
from segjax.messages.lists import few

if TYPE_CHECKING:
    from segjax.pretrained import Pretrained
    from segjax.training.configuration import ExperimentConfig

PIXEL_RANGE = "network.pixel_range"  # may change: it is for the images, not the network
# Other settings have shaped the trained network.
MAY_CHANGE = ("prediction.", "network.detections.", PIXEL_RANGE)
NAMES_SHOWN = 12  # in an error that lists settings

Model = TypeVar("Model", bound="Pretrained")
Settings = Annotated[
    tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE ...", help_behavior_hint="")
]


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value that is no JSON is a string.

    Raises:
      UserError: a setting has no "=".
    """
    changes = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected NAME=VALUE, such as prediction.flip=true")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def refuse_unknown(changes: Mapping[str, Any], run: Path) -> None:
    """Raises UserError for a setting that a run's configuration lacks; names the nearest."""
    from segjax.training.run_directory import read_config

    known = [*flatten(read_config(run)["config"])]
    for name in changes:
        if name not in known and not any(each.startswith(f"{name}.") for each in known):
            listed = [each for each in known if each.startswith(MAY_CHANGE)]
            raise UserError(f"--set {name}: {run} has no such setting{_hint(name, listed)}")


def refuse_fixed(changes: Mapping[str, Any], config: "ExperimentConfig") -> None:
    """Raises UserError for settings of a run that cannot change after the training."""
    from segjax.training.configuration import paths

    may_change = paths(config)
    for name in changes:
        if not name.startswith(MAY_CHANGE) and name not in may_change:
            raise UserError(
                f"--set {name}: expected prediction.NAME=VALUE, network.detections.NAME=VALUE, "
                f"{PIXEL_RANGE}=[0,65535], or the new PATH of data that has moved; other settings "
                "of a run cannot change"
            )


def with_settings(trained: Model, changes: Mapping[str, Any]) -> Model:
    """Returns a model without a run that predicts with other settings; see `with_prediction`.

    Raises:
      UserError: the model has no such setting, or the value is bad.
    """
    from segjax.recipes.prediction_of_weights import settings_of, with_prediction
    from segjax.training.configuration import UnknownSetting

    if PIXEL_RANGE in changes:
        raise UserError(f"--set {PIXEL_RANGE}: weights without a run take --pixel-range LOW HIGH")
    try:
        return with_prediction(trained, changes)
    except UnknownSetting as error:
        known = [*flatten(settings_of(trained))]
        name = next(name for name in changes if name not in known)
        raise UserError(
            f"--set {name}: weights without a run have no such setting{_hint(name, known)}"
        ) from error
    except ValueError as error:
        raise UserError(f"--set: {error}") from error


def _hint(name: str, known: Sequence[str]) -> str:
    """Names the setting whose last part is nearest, or lists the settings."""
    by_last_part = {each.rpartition(".")[2]: each for each in known}
    found = nearest(name.rpartition(".")[2], by_last_part)
    if found is None:
        return f"; there is {few(known, most=NAMES_SHOWN)}" if known else ""
    return f"; did you mean {by_last_part[found]!r}?"
