"""The exported function of a semantic model: images in, labels and probabilities out."""

from collections.abc import Callable
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.export.pixels import eight_bits, normalization
from segjax.export.windows import check_covering, cover
from segjax.inference.views import View, augmented_size
from segjax.tasks.semantic import SemanticTask


def check_semantic(task: SemanticTask) -> None:
    """Raises ValueError, with the reason, for a task that cannot be exported."""
    if task.refine is not None:
        raise ValueError(
            "the CRF cannot be exported: it runs on the host; export without it "
            "(--set prediction.refine=false)"
        )
    normalization(task.preprocess)
    check_covering(task.covering)


def resizes(task: SemanticTask) -> bool:
    """Whether the task resizes images. Then the size of the exported function's images is fixed."""
    return task.input_size is not None or any(view.scale != 1 for view in task.views)


def semantic_function(task: SemanticTask, variables: Any, *, dtype: str) -> Callable:
    """Returns the function (images) → {"labels", "probabilities"}, which equals `task.merge`.

    Args:
      task: a task that `check_semantic` accepts.
      variables: the network's variables, which become constants of the function.
      dtype: the type of the images' pixels.

    Returns:
      A function of images [batch, height, width, channels]: "labels" uint8 [batch, height, width]
      and "probabilities" float32 [batch, height, width, classes].
    """
    normalize = normalization(task.preprocess)
    known = getattr(task.preprocess, "dtypes", (dtype,))

    def network(images):
        return task.predict(variables, {"image": images})["probabilities"]

    def run(images):
        if dtype not in known and task.pixel_range is not None:
            images = eight_bits(images, task.pixel_range)
        images = normalize(images)
        found = [
            _restored(
                cover(network, _augmented(images, view, task), task.covering.scaled(view.scale)),
                view,
                images.shape[1:3],
            )
            for view in task.views
        ]
        probabilities = found[0] if len(found) == 1 else sum(found[1:], found[0]) / len(found)
        labels = jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)
        return {"labels": labels, "probabilities": probabilities}

    return run


def _augmented(images, view: View, task: SemanticTask):
    """Computes `views.augment` on a batch."""
    size = images.shape[1:3]
    if resizes(task):
        base = size if task.input_size is None else task.input_size(size)
        images = _resized(images, augmented_size(base, View(scale=view.scale)))
    images = images[:, :, ::-1] if view.flip else images
    return jnp.rot90(images, view.quarter_turns, axes=(1, 2))


def _restored(found, view: View, size):
    """Computes `views.restore` on a batch."""
    if found.shape[1:3] != (size[::-1] if view.quarter_turns % 2 else size):
        found = _resized(found, size[::-1] if view.quarter_turns % 2 else size)
    upright = jnp.rot90(found, -view.quarter_turns, axes=(1, 2))
    return upright[:, :, ::-1] if view.flip else upright


def _resized(images, size: tuple[int, int]):
    """Computes `resizing.resize_image` on float32 images [batch, height, width, channels]."""
    old = images.shape[1:3]
    shrinks = any(2 * new < before for new, before in zip(size, old, strict=True))
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for axis in (1, 0):
        if size[axis] != old[axis]:
            weights = _weights(old[axis], size[axis], method)
            images = lax.dot_general(
                images, weights, (((1 + axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
            )
            images = jnp.moveaxis(images, -1, 1 + axis)
    return images


def _weights(old: int, new: int, method: int) -> np.ndarray:
    """Returns OpenCV's own weights [new, old] of one axis: it resizes the identity matrix."""
    return cv2.resize(np.eye(old, dtype=np.float32), (old, new), interpolation=method)
