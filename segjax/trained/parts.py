"""Predicts images that are larger than memory: window by window, part by part.

The windows and their averages are those of the ordinary prediction, so the results are equal.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from segjax.data.checks.examples import check_for
from segjax.data.image_windows import Mapped, Turned, Windows, blocks
from segjax.inference.views import View, augment, restore
from segjax.pretrained.converted import Pretrained
from segjax.trained.run import TrainedRun
from segjax.training.strategies import strategy_for

BAND = 256  # rows of averaged views that are read at once


def why_not_in_parts(task: Any) -> str | None:
    """Says why a task cannot predict an image in parts; None if it can."""
    if not hasattr(task, "covering"):
        return "it finds objects, for which it sees the whole image"
    if getattr(task, "refine", None) is not None:
        return "its CRF connects all pixels of the image (prediction.refine)"
    if any(view.scale != 1 for view in task.views):
        return "it resizes the whole image (prediction.scales)"
    if not hasattr(task.covering, "stitch_parts") or task.input_size is not None:
        return (
            "it predicts an image in one pass; windows are set by, for example, "
            "--set prediction.size=[513,513] prediction.window_stride=[385,385]"
        )
    if task.decode is not None and not hasattr(task.decode, "instances_in_bands"):
        return f"its decoding ({type(task.decode).__name__}) needs the whole image"
    if not hasattr(task.preprocess, "for_windows"):
        return f"its preprocessing ({type(task.preprocess).__name__}) needs the whole image"
    return None


class PartPredictor:
    """Predicts images in parts with one compiled function.

    Args:
      model: a trained model that labels pixels; see `why_not_in_parts`.
      batch_size: windows at a time, per device or group of devices that share them.
      rows: number of devices that share the rows of each window.
    """

    def __init__(self, model: Pretrained, *, batch_size: int = 1, rows: int = 1):
        precision = model.config.matmul_precision if isinstance(model, TrainedRun) else "default"
        self._task: Any = model.segmenter
        devices = tuple(jax.local_devices())
        parallel = strategy_for(self._task, rows, devices=devices, matmul_precision=precision)
        self._batch_size = batch_size * parallel.local_shares
        self._predict = parallel.predict_step(self._task.predict)
        self._variables = parallel.local(parallel.replicate(model.variables))

    def __call__(
        self, image: Windows, *, scratch: Path, name: str = "image"
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yields the probabilities of an image part by part.

        Memory holds a batch of windows and the rows that two rows of windows share. Normalisation
        by the image's own statistics reads the image twice before. With several views, their sum is
        a file, float32 [height, width, classes].

        Args:
          image: the image; its channels are those of the task.
          scratch: an existing folder for that file.
          name: the image's name, for errors and the bar.

        Yields:
          (row, column, probabilities [h, w, classes]): parts that cover the image once, row by row.

        Raises:
          BadData: the network cannot read the image.
        """
        task = self._task
        check = check_for(task)
        seen = Mapped(image, lambda x: check.check_image({"id": name, "image": x})["image"])
        normalize = task.preprocess.for_windows(lambda: (seen[each] for each in blocks(seen)))
        normal = Mapped(seen, lambda x: normalize({"image": x}, None)["image"])
        if task.views == (View(),):
            yield from self._parts(normal, name)
        else:
            total = self._sum(normal, name, scratch)
            for row in range(0, len(total), BAND):
                part = np.array(total[row : row + BAND])
                yield row, 0, part / len(task.views) if len(task.views) > 1 else part

    def _parts(self, image: Windows, name: str) -> Iterator[tuple[int, int, np.ndarray]]:
        covering = self._task.covering
        positions = covering.positions(image.shape)
        bar = tqdm(positions, desc=f"predicting {name}", unit="window", disable=None)
        outputs = self._outputs(covering.extract(image, position) for position in bar)
        return covering.stitch_parts(outputs, image.shape)

    def _outputs(self, windows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        while group := [*itertools.islice(windows, self._batch_size)]:
            padded = group + group[:1] * (self._batch_size - len(group))
            outputs = self._predict(self._variables, {"image": np.stack(padded)})()
            yield from outputs["probabilities"][: len(group)]

    def _sum(self, image: Windows, name: str, scratch: Path) -> np.ndarray:
        """Adds the probabilities of all views in a file, and returns it as a memory map."""
        total = None
        for number, view in enumerate(self._task.views):
            turned = Turned(image, _turn(view))
            title = f"{name}, view {number + 1} of {len(self._task.views)}"
            for row, column, part in self._parts(turned, title):
                if total is None:
                    shape = (*image.shape[:2], part.shape[2])
                    total = np.lib.format.open_memmap(
                        scratch / "sum.npy", mode="w+", dtype=part.dtype, shape=shape
                    )
                ends = row + part.shape[0], column + part.shape[1]
                rows, columns = turned.source(slice(row, ends[0]), slice(column, ends[1]))
                size = rows.stop - rows.start, columns.stop - columns.start
                total[rows, columns] += restore(part, view, size)
        assert total is not None  # a task has a view
        return total


def _turn(view: View) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: augment(pixels, view)
