"""What an experiment file provides, and how to load it again from a run directory."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import optax

from segjax.data.orientation import Orientation
from segjax.files.nested import with_value
from segjax.tasks.protocol import Task
from segjax.training import configuration
from segjax.training.experiment_files import import_names, import_places, import_root
from segjax.training.ranking import read_best_metric, smaller_is_better
from segjax.training.run_directory import find_experiment, read_config


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
      best_metric: the metric that ranks checkpoints, on the first split scored during training;
        `train.best_metric` overrides it.
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
      orientation: how `segjax predict` reads image files with an EXIF orientation; see
        `segjax.data.orientation`.
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
    orientation: Orientation = "upright"

    def __post_init__(self):
        if "train" in self.evaluation:
            raise ValueError(
                "an evaluation split is named 'train', as the training steps are in metrics.jsonl; "
                "give it another name, such as 'train_scored'"
            )

    def ranked_by(self, best_metric: str | None) -> "Experiment":
        """Returns the experiment with the metric of the setting `train.best_metric`.

        If the setting does not say whether a smaller value is better, the experiment says it of its
        own metric, and the name of any other.
        """
        if best_metric is None:
            return self
        name, minimize = read_best_metric(best_metric)
        if minimize is None:
            own = name == self.best_metric
            minimize = self.minimize if own else smaller_is_better(name)
        return replace(self, best_metric=name, minimize=minimize)


def load_module(path: Path):
    """Imports an experiment file, which may import other files of its folder.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not Python, it has no `Config` or no `build`, or a module that it
        imports is neither beside it nor installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the experiment file {path} is not there any more")
    # A module of a package may import relative to it.
    package = path.resolve().relative_to(import_root(path)).parts[:-1]
    name = ".".join([*package, f"segjax_experiment_{path.stem}"])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by name
    with _own_imports(path):
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
      ValueError: its configuration no longer fits the experiment file, or a module that the file
        imports is neither beside it nor installed.
    """
    run = Path(run)
    values = read_config(run)["config"] | {"workdir": str(run)}
    path = find_experiment(run)
    if data_dir is not None:
        values["data_dir"] = str(data_dir)
    for name, value in changes.items():
        values = with_value(values, name, value)
    with _own_imports(path):
        module = load_module(path)
        config = configuration.from_dict(module.Config, values, where=str(run / "config.json"))
        return module.build(config).ranked_by(config.train.best_metric), config


@contextlib.contextmanager
def _own_imports(path: Path) -> Iterator[None]:
    """Lets an experiment import the files beside it, even if modules of the same names are loaded.

    Two runs may each have a helpers.py, and so may the program that loads them. Afterwards the
    program's modules are as they were.

    Raises:
      ValueError: an import in the experiment fails.
    """
    places = [str(place) for place in import_places(path)]
    names = import_names(path) - sys.stdlib_module_names
    others = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in names and not _is_in(module, import_root(path))
    }
    for name in others:
        del sys.modules[name]
    sys.path[:0] = places
    importlib.invalidate_caches()  # the files may be new
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{path} cannot be imported: {_missing(error)}") from error
    finally:
        for place in places:
            sys.path.remove(place)
            if place not in sys.path:
                sys.path.append(place)  # for imports inside functions, which run later
        replaced = {name.partition(".")[0] for name in others}
        for name in [name for name in sys.modules if name.partition(".")[0] in replaced]:
            del sys.modules[name]
        sys.modules.update(others)


def _missing(error: ImportError) -> str:
    if (error.name or "").partition(".")[0] == "segjax":
        return f"{error}; another version of segjax made it (environment.json of a run names it)"
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name!r} is neither beside it nor installed here"
    return str(error)


def _is_in(module, folder: Path) -> bool:
    """Whether a module is a file of a folder."""
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)
