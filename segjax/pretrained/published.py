"""Published folders: a trained model that predicts anywhere, without its experiment file.

`segjax publish` writes a folder, and `load_published` reads it:

- `segjax.json`: the JSON object below.
- `model.safetensors`: the variables by path, such as "params/logits/kernel". They are those that
  evaluation uses: moving averages of the parameters, where the run kept them.
- `README.md`: the model card, with `pictures/`.
- `training.json`: for people; see `segjax.export.training_record`.

The entries of `segjax.json`:

- "format": the number of this format, `FORMAT`. Readers refuse a larger one.
- "segjax": the version that wrote the folder.
- "source": the run's name, or the name of converted weights; "step" of the checkpoint, or null.
- "license": as it was stated, or null.
- "task": network, classes, preprocessing, views and decoding; see
  `segjax.pretrained.description`. Losses and what else only training needs is left out.
- "images": "dtypes" that the model takes, and the "orientation" in which image files are read.
- "pixels": the types and the range of the training images, where known.
- "masks": how the training's mask files were read ("holds", "values", "ignored"), and the name of
  the second folder with "class_masks" for objects; or null.
- "prediction": "batch_size" on each device, and "matmul_precision".
- "weights": "file", "sha256" and the number of "parameters".
- "scores": by split, the number of "examples" and the "metrics" that are single numbers, or one
  number for each class.

A newer version of segjax reads older folders: a field that they lack has the default that keeps
the old behaviour. An older version refuses what it does not know, and names the version to use.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load

from segjax import __version__
from segjax.data.orientation import Orientation
from segjax.models.network import Network
from segjax.pretrained.converted import Pretrained
from segjax.pretrained.description import rebuild
from segjax.tasks.instance import InstanceTask
from segjax.tasks.semantic import SemanticTask

FORMAT = 1
FACTS = "segjax.json"
WEIGHTS = "model.safetensors"
# What Git leaves in place of a large file that it has not fetched.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, eq=False, kw_only=True)
class Published(Pretrained):
    """The model of a published folder.

    Attributes:
      description: the folder and what the model came from, as one line of text.
      step: the step of the run's checkpoint; None for converted weights.
      orientation: how `segjax predict` reads image files with an EXIF orientation.
      pixels: the "types" of the training images and the "range" of their values; empty if unknown.
      masks: how the training's mask files were read; empty if unknown.
      eval_batch_size: tiles or images that a device predicts at a time.
      scores: the scores of the model by split, as they were published.
      license: the licence as its publisher stated it, or None.
    """

    description: str
    step: int | None = None
    orientation: Orientation = "upright"
    pixels: Mapping[str, list] = field(default_factory=dict)
    masks: Mapping[str, Any] = field(default_factory=dict)
    eval_batch_size: int = 1
    scores: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None

    # Runs have both; without these, `load_run(...).experiment` had two types.
    @property
    def experiment(self) -> NoReturn:
        raise AttributeError(f"a published folder has no experiment ({self.description})")

    @property
    def config(self) -> NoReturn:
        raise AttributeError(f"a published folder has no configuration ({self.description})")


def is_published(folder: str | Path) -> bool:
    """Whether a path is a folder that `segjax publish` wrote."""
    return (Path(folder) / FACTS).is_file()


def load_published(folder: str | Path) -> Published:
    """Loads the model of a published folder. Nothing in the folder is executed.

    Args:
      folder: the folder, of any name and place.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or of a newer version of segjax than this one; the message
        names the file and what to do.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    path = folder / FACTS
    try:
        task = rebuild(facts["task"], "task")
        if not isinstance(task, SemanticTask | InstanceTask):
            raise ValueError(f"task: expected a task of segjax, found {type(task).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{path}: {error} in segjax {__version__}; segjax {facts['segjax']} wrote the folder: "
            "use that version, or a newer one"
        ) from error
    try:
        return Published(
            model=cast(Network, task.model),
            variables=read_variables(folder),
            preprocess=task.preprocess,
            task=task,
            dtypes=tuple(facts["images"]["dtypes"]),
            matmul_precision=facts["prediction"]["matmul_precision"],
            description=f"{folder} ({_origin(facts)})",
            step=facts["step"],
            orientation=facts["images"]["orientation"],
            pixels=facts["pixels"],
            masks={name: _tuple(value) for name, value in (facts["masks"] or {}).items()},
            eval_batch_size=facts["prediction"]["batch_size"],
            scores=facts["scores"],
            license=facts["license"],
        )
    except (LookupError, TypeError) as error:
        raise _damaged(path, error) from error


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns what `segjax.json` holds.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or its format is newer than this version of segjax.
    """
    path = folder / FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        number, written_by = facts["format"], facts["segjax"]
        _ = facts["task"]["class"], facts["weights"]["sha256"]
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from error
    if number != FORMAT:
        raise ValueError(
            f"{path}: format {number}; segjax {__version__} reads format {FORMAT}: use "
            f"segjax {written_by} or newer"
        )
    return facts


def read_variables(folder: Path) -> dict[str, Any]:
    """Returns the variables of a published folder, {"params": ..., "batch_stats": ...}.

    Raises:
      FileNotFoundError: the file of weights is missing.
      ValueError: it is not the file that was published.
    """
    expected, path = read_facts(folder)["weights"]["sha256"], folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a published folder has its weights there")
    content = path.read_bytes()
    if content.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path}: Git has not fetched the weights: run `git lfs install` and `git lfs pull` "
            "in the folder"
        )
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(
            f"{path}: not the file that was published (its hash is not that in {FACTS}): it is "
            "damaged or replaced; copy the folder again"
        )
    arrays: dict[str, np.ndarray] = load(content)
    nested = flax.traverse_util.unflatten_dict(arrays, sep="/")
    return {"params": {}, "batch_stats": {}} | jax.tree.map(jnp.asarray, nested)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _origin(facts: dict[str, Any]) -> str:
    step = "" if facts["step"] is None else f", checkpoint of step {facts['step']}"
    return f"published from {facts['source']}{step}"


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is damaged: expected what segjax publish writes ({type(error).__name__}: {error})"
    )
