"""Image segmentation in JAX: U-Net, DeepLab and Mask R-CNN as pure functions.

The rooms are imported on first use, so that the command line and the data code, which need no
jax of their own, do not import Flax and Optax. (grain itself imports jax.)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers and editors do not run `__getattr__`
    from segjax import (
        coco,
        data,
        evaluation,
        inference,
        losses,
        models,
        ops,
        pictures,
        pretrained,
        recipes,
        tasks,
        training,
    )

__all__ = [
    "coco",
    "data",
    "evaluation",
    "inference",
    "losses",
    "models",
    "ops",
    "pictures",
    "pretrained",
    "recipes",
    "tasks",
    "training",
]
__version__ = "0.1.0"


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"segjax.{name}")
    raise AttributeError(f"module 'segjax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return [*__all__, "__version__"]
