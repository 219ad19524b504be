"""Puts trained weights into the variables of a fresh model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flax.traverse_util

# A classifier, whose shape depends on the classes, is called "logits" in every model.
_CLASSIFIER = re.compile(r"(^|/)logits\w*/")
_PATHS_SHOWN = 8


@dataclass(frozen=True)
class Initialization:
    """What `initialize` did, as paths of arrays, "params/backbone/stem/convolution/kernel".

    Attributes:
      taken: from the trained variables.
      new: of the model, left as they were drawn.
      left_out: of the trained variables, for which the model has no place.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self):
        return (
            f"{len(self.taken)} arrays taken ({_parts(self.taken)}), "
            f"{len(self.new)} new ({_parts(self.new)}), "
            f"{len(self.left_out)} left out ({_parts(self.left_out)})"
        )


def initialize(
    variables: Any, trained: Any, *, moved: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict, Initialization]:
    """Returns the variables of a fresh model with all that trained ones have in their places.

    Trained variables without a "backbone" are those of a backbone, and go to the model's. The
    backbone must fit, array by array; only whole stages may be new, such as DeepLab v3's copies of
    block 4. Of the heads, those of the same names are taken. Classifiers of another shape stay as
    drawn: their classes are others.

    Args:
      variables: {"params": ..., "batch_stats": ...} as `model.init` gives them.
      trained: the `variables` of a `Pretrained` or of a run.
      moved: beginnings of paths of trained variables, and what stands there in the model instead:
        {"backbone/stage4_": "box_head/"} for Mask R-CNN's C4 head.

    Raises:
      ValueError: nothing fits; the backbones differ; or a shape does, other than a classifier's.
        The message lists what.
    """
    fresh = flax.traverse_util.flatten_dict(variables, sep="/")
    found = flax.traverse_util.flatten_dict(trained, sep="/")
    if "backbone" in variables["params"] and "backbone" not in trained["params"]:
        found = {
            "/".join((path.partition("/")[0], "backbone", path.partition("/")[2])): array
            for path, array in found.items()
        }
    for before, after in moved.items():
        found = {path.replace(f"/{before}", f"/{after}", 1): x for path, x in found.items()}
    shared = [path for path in fresh if path in found]
    if not shared:
        raise ValueError(
            f"nothing of the trained weights fits: the model has {_parts(fresh)}, the weights have "
            f"{_parts(flax.traverse_util.flatten_dict(trained, sep='/'))}"
        )
    unlike = [path for path in shared if fresh[path].shape != found[path].shape]
    stages = {_stage(path) for path in found}
    problems = {
        "of another shape": [
            f"{path} {list(found[path].shape)}, expected {list(fresh[path].shape)}"
            for path in unlike
            if not _CLASSIFIER.search(path)
        ],
        "missing": [
            path
            for path in fresh
            if path not in found and _in_backbone(path) and _stage(path) in stages
        ],
        "not in the model": [path for path in found if path not in fresh and _in_backbone(path)],
    }
    if any(problems.values()):
        lines = [
            f"{len(paths)} {kind}: {', '.join(paths[:_PATHS_SHOWN])}"
            + (" ..." if len(paths) > _PATHS_SHOWN else "")
            for kind, paths in problems.items()
            if paths
        ]
        raise ValueError("\n  ".join(["the trained weights do not fit the model:", *lines]))
    taken = [path for path in shared if path not in unlike]
    merged = fresh | {path: found[path] for path in taken}
    report = Initialization(
        taken=tuple(taken),
        new=tuple(path for path in fresh if path not in taken),
        left_out=tuple(path for path in found if path not in taken),
    )
    return flax.traverse_util.unflatten_dict(merged, sep="/"), report


def _in_backbone(path: str) -> bool:
    return path.split("/")[1] == "backbone"


def _stage(path: str) -> str:
    """Of "params/backbone/stage4_block1/...", "backbone/stage4"."""
    return "/".join(path.split("/")[1:3]).partition("_")[0]


def _parts(paths) -> str:
    """The parts of a model in which paths are, with how many arrays each."""
    counts: dict[str, int] = {}
    for path in paths:
        part = path.split("/")[1]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part}: {count}" for part, count in counts.items()) or "none"
