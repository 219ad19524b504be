"""Initialises the variables of a model from trained weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import flax.traverse_util
import numpy as np

# Layers whose shape depends on the number of classes: the "logits" of every model, and a detector's
# "class_logits" and box "deltas". (The RPN's deltas depend on the anchors instead.)
_CLASSIFIER = re.compile(r"/logits\w*/|/box_predictor/(class_logits|deltas)/")
_PATHS_SHOWN = 8


@dataclass(frozen=True)
class Initialization:
    """The arrays that `initialize` took, by path: "params/backbone/stem/convolution/kernel".

    Attributes:
      taken: arrays taken from the trained variables.
      new: arrays of the model that keep their random values.
      left_out: arrays of the trained variables that the model has no place for.
      bands: number of bands that each kernel for RGB images was adapted to, by path; these kernels
        are in `taken`.
    """

    taken: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]
    bands: Mapping[str, int] = field(default_factory=dict)

    def __str__(self):
        adapted = [
            f"; {path} adapted from RGB to {bands} band{'s' * (bands != 1)} "
            + ("(the sum)" if bands == 1 else f"(R, G, B in turn, times 3/{bands})")
            for path, bands in self.bands.items()
        ]
        return (
            f"{len(self.taken)} arrays taken ({_parts(self.taken)}), "
            f"{len(self.new)} new ({_parts(self.new)}), "
            f"{len(self.left_out)} left out ({_parts(self.left_out)})" + "".join(adapted)
        )


def adapt_to_bands(kernel: Any, bands: int) -> np.ndarray:
    """Adapts a kernel for RGB images to images of another number of bands.

    - One band gets the sum of the three kernels. A grey image so gives the activations that the
      same image gives as RGB.
    - N bands get the kernels of R, G and B in turn, times 3 / N. Bands of equal values so give the
      activations that three such bands give, and the normalisation behind the layer still fits.

    timm and segmentation-models-pytorch have the same rule.

    Args:
      kernel: [height, width, 3, features].
      bands: number of bands, N.

    Returns:
      The kernel [height, width, bands, features].
    """
    kernel = np.asarray(kernel)
    if bands == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(bands) % 3] * kernel.dtype.type(3 / bands)


def initialize(
    variables: Any, trained: Any, *, moved: Mapping[str, str] = MappingProxyType({})
) -> tuple[dict, Initialization]:
    """Replaces the variables of a freshly initialised model by trained ones where they fit.

    Trained variables without a "backbone" are taken as a backbone. Every array of the backbone must
    fit; only whole stages may be new, such as DeepLab v3's copies of block 4. Heads with the same
    name are taken and must fit too. Class-dependent layers keep their random values if their shapes
    differ. A first layer for RGB images is adapted to a model of other bands; see `adapt_to_bands`.

    Args:
      variables: {"params": ..., "batch_stats": ...} as `model.init` returns them.
      trained: the `variables` of a `Pretrained` or of a run.
      moved: prefixes of paths of trained variables, and their prefixes in the model:
        {"backbone/stage4_": "box_head/"} for Mask R-CNN's C4 head.

    Returns:
      The variables, and a report of the arrays taken.

    Raises:
      ValueError: no array fits; the backbones differ; or heads of the same name differ in more than
        the number of classes. The message lists every misfit.
    """
    fresh: dict[str, Any] = flax.traverse_util.flatten_dict(variables, sep="/")
    found: dict[str, Any] = flax.traverse_util.flatten_dict(trained, sep="/")
    if "backbone" in variables["params"] and "backbone" not in trained["params"]:
        found = {
            "/".join((path.partition("/")[0], "backbone", path.partition("/")[2])): array
            for path, array in found.items()
        }
    for before, after in moved.items():
        found = {path.replace(f"/{before}", f"/{after}", 1): x for path, x in found.items()}
    bands = {
        path: fresh[path].shape[2]
        for path in fresh
        if path in found and _reads_other_bands(fresh[path].shape, found[path].shape)
    }
    found |= {path: adapt_to_bands(found[path], count) for path, count in bands.items()}
    shared = [path for path in fresh if path in found]
    if not shared:
        raise ValueError(
            f"none of the trained weights fits: the model has {_parts(fresh)}, the weights have "
            f"{_parts(flax.traverse_util.flatten_dict(trained, sep='/'))}"
        )
    unlike = [path for path in shared if fresh[path].shape != found[path].shape]
    # A backbone must fit stage by stage, a head as a whole.
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
            lines.append("the backbone fits: to leave the heads out, set initial.backbone_only")
        raise ValueError("\n  ".join(["the trained weights do not fit the model:", *lines]))
    taken = [path for path in shared if path not in unlike]
    merged = fresh | {path: found[path] for path in taken}
    report = Initialization(
        taken=tuple(taken),
        new=tuple(path for path in fresh if path not in taken),
        left_out=tuple(path for path in found if path not in taken),
        bands=bands,
    )
    return flax.traverse_util.unflatten_dict(merged, sep="/"), report


def _reads_other_bands(shape: tuple[int, ...], trained: tuple[int, ...]) -> bool:
    """Whether kernels differ in the number of inputs alone, and the trained one reads RGB.

    Only first layers have three inputs.
    """
    return (
        len(shape) == len(trained) == 4
        and trained[2] == 3 != shape[2]
        and (*shape[:2], shape[3]) == (*trained[:2], trained[3])
    )


def _part(path: str) -> str:
    """The part of the model: "backbone" for "params/backbone/stage4_block1/..."."""
    return path.split("/")[1]


def _stage(path: str) -> str:
    """The stage, "backbone/stage4" for "params/backbone/stage4_block1/..."; a head's `_part`."""
    part, *inner = path.split("/")[1:3]
    return f"{part}/{inner[0].partition('_')[0]}" if part == "backbone" else part


def _parts(paths) -> str:
    """Counts the paths in each part of the model."""
    counts: dict[str, int] = {}
    for path in paths:
        part = _part(path)
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part}: {count}" for part, count in counts.items()) or "none"
