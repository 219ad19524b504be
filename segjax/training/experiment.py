"""What an experiment file provides, and how one is found again from its run directory."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optax

from segjax.tasks.protocol import Task
from segjax.training import configuration
from segjax.training.experiment_files import experiments_folder
from segjax.training.run_directory import KEPT_EXPERIMENT, read_config


@dataclass(frozen=True)
class Experiment:
    """The parts that a configuration resolves to.

    Data sets open lazily; prediction needs none.

    Attributes:
      task: see `segjax.tasks`.
      train: opens the source of training examples.
      transforms: from an example to what a batch is made of; see
        `segjax.data.augmentation.semantic`.
      evaluation: opens the source of each split, by the split's name. Unless the configuration
        says otherwise, the first is scored along the way, the others at the end of the run only.
      groups: the group of each example of a source of training examples; all examples of a batch
        are of one group, such as an orientation. None mixes all.
      best_metric: of the split scored along the way, by which checkpoints are the best.
      minimize: whether less of it is better.
      initialize: maps freshly initialised variables to those of the first step, such as ones with a
        trained backbone; NumPy arrays in and out. None keeps them.
      schedule: step → learning rate; None builds that of `config.optimizer`.
      optimizer: maps the schedule to an Optax transformation, such as `optax.lion`; None builds
        that of `config.optimizer`. Its multipliers of zero freeze parameters in both cases.
      frozen: returns the variables of other networks by name, such as {"teacher": variables}, as
        NumPy arrays; loss terms find them in variables["frozen"]. A resumed run reads them from its
        checkpoint and does not call this.
    """

    task: Task
    train: Callable[[], Any]
    transforms: tuple[Callable, ...]
    evaluation: Mapping[str, Callable[[], Any]]
    groups: Callable[[Any], np.ndarray] | None = None
    best_metric: str = "mean_iou"
    minimize: bool = False
    initialize: Callable[[dict], dict] | None = None
    schedule: optax.Schedule | None = None
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation] | None = None
    frozen: Callable[[], dict] | None = None


def load_module(path: Path):
    """Imports an experiment file; its folder is searched for what it imports.

    Raises:
      FileNotFoundError: the file has gone.
      ValueError: it is no experiment file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the experiment file {path} is not there any more")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"segjax_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    for attribute in ("Config", "build"):
        if not hasattr(module, attribute):
            raise ValueError(f"{path} has no {attribute}; it is not an experiment file")
    return module


def load_experiment(
    run: Path, *, data_dir: Path | None = None, changes: Mapping[str, Any] = MappingProxyType({})
):
    """Returns (experiment, configuration) of a run directory.

    Args:
      data_dir: where the data sets are now; None takes the run's own.
      changes: other values of settings, by dotted name: {"prediction.output_stride": 8}.

    Raises:
      FileNotFoundError: `run` is no run directory, or neither its experiment file nor the copy that
        it keeps is there.
      ValueError: its configuration does not fit the experiment file any more.
    """
    run = Path(run)
    recorded = read_config(run)
    module = load_module(_find(Path(recorded["experiment"]), run))
    values = recorded["config"] | {"workdir": str(run)}
    if data_dir is not None:
        values["data_dir"] = str(data_dir)
    for name, value in changes.items():
        values = configuration.with_value(values, name, value)
    config = configuration.from_dict(module.Config, values, where=str(run / "config.json"))
    return module.build(config), config


def _find(recorded: Path, run: Path) -> Path:
    """The recorded file; without it, this segjax's own of that name, or the run's copy."""
    places = [recorded]
    if "experiments" in recorded.parts:  # of another checkout or wheel
        below = recorded.parts[recorded.parts.index("experiments") + 1 :]
        places.append(experiments_folder().joinpath(*below))
    places.append(run / KEPT_EXPERIMENT / recorded.name)
    return next((path for path in places if path.is_file()), recorded)
