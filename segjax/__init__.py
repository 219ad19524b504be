"""Image segmentation in JAX: U-Net, DeepLab and Mask R-CNN as pure functions.

Packages and functions are imported on first use, so that the command line and the data code start
without Flax and Optax. (grain itself imports jax.)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers and editors do not run `__getattr__`
    from segjax import (
        coco,
        data,
        evaluation,
        export,
        inference,
        losses,
        models,
        ops,
        pictures,
        pretrained,
        recipes,
        tasks,
        training,
        weights,
    )
    from segjax.trained import load_run, predict_all

__all__ = [
    "coco",
    "data",
    "evaluation",
    "export",
    "inference",
    "load_run",
    "losses",
    "models",
    "ops",
    "pictures",
    "predict_all",
    "pretrained",
    "recipes",
    "tasks",
    "training",
    "weights",
]
__version__ = "0.1.0"

_FUNCTIONS = ("load_run", "predict_all")


def __getattr__(name):
    if name in _FUNCTIONS:
        return getattr(importlib.import_module("segjax.trained"), name)
    if name in __all__:
        return importlib.import_module(f"segjax.{name}")
    raise AttributeError(f"module 'segjax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return [*__all__, "__version__"]
