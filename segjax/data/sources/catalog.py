"""Finds the builders in `segjax/data/datasets` by the names of their folders."""

import importlib
import pkgutil
from pathlib import Path

from segjax.data import datasets
from segjax.data.builder import SegmentationBuilder
from segjax.messages.hints import nearest


def dataset_names() -> list[str]:
    """Names of all data sets, "name" or "name/config", such as "cell_tracking/phc_c2dh_u373"."""
    return [name for folder in _folders() for name in _names(folder)]


def make_builder(name: str, *, data_dir: Path) -> SegmentationBuilder:
    """Makes the TFDS builder of a data set.

    Raises:
      ValueError: no data set has this name; the message lists the names.
    """
    # Import no other builder: each import takes time, and one may need a package that is missing.
    folder, _, config = name.partition("/")
    if folder not in _folders() or name not in _names(folder):
        names = dataset_names()
        configs = [known for known in names if known.startswith(f"{name}/")]
        close = configs or list(filter(None, [nearest(name, names)]))
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"no data set is named {name!r}.{hint} Data sets: {', '.join(names)}")
    data_dir = Path(data_dir).expanduser().absolute()
    return _builder_class(folder)(data_dir=data_dir, config=config or None)


def _folders() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(datasets.__path__)]


def _names(folder: str) -> list[str]:
    configs = _builder_class(folder).BUILDER_CONFIGS
    return [f"{folder}/{config.name}" for config in configs] or [folder]


def _builder_class(folder: str) -> type[SegmentationBuilder]:
    return importlib.import_module(f"{datasets.__name__}.{folder}.{folder}_dataset_builder").Builder
