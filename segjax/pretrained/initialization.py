"""Puts trained weights into the variables of a fresh model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flax.traverse_util

# What has a shape that depends on the classes: every model's "logits", and of a detector's regions
# the "class_logits" and the "deltas" of a box for each class. (The RPN's depend on the anchors.)
_CLASSIFIER = re.compile(r"/logits\w*/|/box_predictor/(class_logits|deltas)/")
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
    block 4. Of the heads, those of the same names are taken, and must fit as well; whatever the
    number of classes shapes stays as drawn where its shape is another.

    Args:
      variables: {"params": ..., "batch_stats": ...} as `model.init` gives them.
      trained: the `variables` of a `Pretrained` or of a run.
      moved: beginnings of paths of trained variables, and what stands there in the model instead:
        {"backbone/stage4_": "box_head/"} for Mask R-CNN's C4 head.

    Raises:
      ValueError: nothing fits; the backbones differ, or heads of the same name; or a shape does,
        other than a classifier's. The message lists what.
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
    # Of a backbone by stages, of the others as a whole.
    kept, stages = {_part(path) for path in fresh}, {_stage(path) for path in found}
    problems = {
        "of another shape": [
            f"{path} {list(found[path].shape)}, expected {list(fresh[path].shape)}"
            for path in unlike
            if not _CLASSIFIER.search(path)
        ],
        "missing": [
            path
            for path in fresh
            if path not in found and _stage(path) in stages and not _CLASSIFIER.search(path)
        ],
        "not in the model": [
            path
            for path in found
            if path not in fresh and _part(path) in kept and not _CLASSIFIER.search(path)
        ],
    }
    if any(problems.values()):
        lines = [
            f"{len(paths)} {kind}: {', '.join(paths[:_PATHS_SHOWN])}"
            + (" ..." if len(paths) > _PATHS_SHOWN else "")
            for kind, paths in problems.items()
            if paths
        ]
        if all(_part(path) != "backbone" for paths in problems.values() for path in paths):
            lines.append("the backbone fits: leave the heads out (initial.backbone_only)")
        raise ValueError("\n  ".join(["the trained weights do not fit the model:", *lines]))
    taken = [path for path in shared if path not in unlike]
    merged = fresh | {path: found[path] for path in taken}
    report = Initialization(
        taken=tuple(taken),
        new=tuple(path for path in fresh if path not in taken),
        left_out=tuple(path for path in found if path not in taken),
    )
    return flax.traverse_util.unflatten_dict(merged, sep="/"), report


def _part(path: str) -> str:
    """Of "params/backbone/stage4_block1/...", "backbone"."""
    return path.split("/")[1]


def _stage(path: str) -> str:
    """Of "params/backbone/stage4_block1/...", "backbone/stage4"; of a head the same as `_part`."""
    part, *inner = path.split("/")[1:3]
    return f"{part}/{inner[0].partition('_')[0]}" if part == "backbone" else part


def _parts(paths) -> str:
    """The parts of a model in which paths are, with how many arrays each."""
    counts: dict[str, int] = {}
    for path in paths:
        part = _part(path)
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part}: {count}" for part, count in counts.items()) or "none"
