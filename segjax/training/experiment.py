"""What an experiment file provides, and how to load it again from a run directory."""

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
    """The parts that an experiment file builds from its configuration.

    Data sets open lazily; prediction needs none.

    Attributes:
      task: see `segjax.tasks`.
      train: opens the source of training examples.
      transforms: the steps from an example to an entry of a batch; see
        `segjax.data.augmentation.semantic`.
      evaluation: opens the source of each split, by the split's name. By default, the first split
        is scored during training and the others only at the end; `train.eval_splits` changes this.
      groups: maps the source of training examples to the group of each example, such as its
        orientation; a batch holds examples of one group. None mixes all examples.
      best_metric: the metric that ranks checkpoints, on the first split scored during training.
      minimize: whether a smaller `best_metric` is better.
      initialize: maps freshly initialised variables to those of the first step, for example with a
        trained backbone; NumPy arrays in and out. None keeps them.
      schedule: step → learning rate; None builds the schedule of `config.optimizer`.
      optimizer: maps the schedule to an Optax transformation, such as `optax.lion`; None builds
        the optimiser of `config.optimizer`. Multipliers of zero in `config.optimizer` freeze
        parameters in both cases.
      frozen: returns the variables of other networks by name, such as {"teacher": variables}, as
        NumPy arrays; loss terms find them in variables["frozen"]. A resumed run reads them from its
        checkpoint instead.
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

    def __post_init__(self):
        if "train" in self.evaluation:
            raise ValueError(
                "an evaluation split is named 'train', as the training steps are in metrics.jsonl; "
                "give it another name, such as 'train_scored'"
            )


def load_module(path: Path):
    """Imports an experiment file, which may import other files of its folder.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not Python, or it has no `Config` or no `build`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the experiment file {path} is not there any more")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = f"segjax_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
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
      data_dir: the folder of the data sets; None takes the run's own.
      changes: settings to override, by dotted name: {"prediction.output_stride": 8}.

    Raises:
      FileNotFoundError: `run` is not a run directory, or its experiment file and the copy kept in
        it are both missing.
      ValueError: its configuration no longer fits the experiment file.
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
    """Returns the recorded file or, if it is missing, segjax's file of that name or the copy."""
    places = [recorded]
    if "experiments" in recorded.parts:  # the run may come from another checkout or wheel
        below = recorded.parts[recorded.parts.index("experiments") + 1 :]
        places.append(experiments_folder().joinpath(*below))
    places.append(run / KEPT_EXPERIMENT / recorded.name)
    return next((path for path in places if path.is_file()), recorded)
