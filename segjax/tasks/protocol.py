"""The protocols of tasks and their evaluators, which are all that the training code relies on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np


class Evaluator(Protocol):
    """Accumulates scores over examples and processes."""

    def update(self, example: dict, prediction: dict) -> float:
        """Adds one prediction; returns the example's own score, or NaN if it has none."""
        ...

    def state(self) -> bytes:
        """Returns the counts so far, for `merge` in another process."""
        ...

    def merge(self, state: bytes) -> None:
        """Adds the counts of another evaluator."""
        ...

    def result(self) -> dict[str, Any]:
        """Returns the metrics by name: numbers, or lists of numbers."""
        ...

    def intervals(self) -> dict[str, list[float]]:
        """Returns [low, high] for metrics that have a confidence interval; see
        `segjax.evaluation.bootstrap`."""
        ...


class Task(Protocol):
    """A model, its loss and its decoding, as pure functions of variables and batch.

    `variables` holds the Flax collections "params" and "batch_stats". In `loss`, it may also hold
    "frozen", the variables of other networks by name, and "ema_params", the moving average of
    "params"; see `segjax.training.state.TrainState`.

    Attributes:
      classes: names of the classes.
      image_channels: numbers of channels that an image may have.
      entries: the entries that an example must have for training and evaluation.
      preprocess: (example, None) → example with a float32 "image". Its `dtypes`, if it has them,
        are the types of pixels that it takes; otherwise it takes "uint8", "uint16"
        and "float32".

    A task may have `pixel_range`, the values that become 0 and 255 in images of other types than
    the preprocessing takes; without it, such images are refused. It may have `background_class`,
    the id of the class that is no object; without it, or with None, every class is one. It may have
    `whole_rows`, the reason why several devices cannot share the rows of an image.
    """

    entries: ClassVar[tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image_channels(self) -> tuple[int, ...]: ...

    @property
    def preprocess(self) -> Callable[[dict, None], dict]: ...

    def init(self, key: Any, batch: dict) -> Mapping[str, Any]:
        """Initialises variables for the shapes of a batch."""
        ...

    def prepare(self, batch: dict) -> dict:
        """Adds entries that depend on the whole batch, such as the number of its valid pixels.

        It runs on each device's share of the batch, before that is cut into micro-batches, and
        sums over the devices.
        """
        ...

    def loss(
        self, variables: Mapping[str, Any], batch: dict, key: Any, train: bool
    ) -> tuple[Any, dict]:
        """Computes the loss of a batch.

        Returns:
          A scalar whose mean over devices and micro-batches is the loss of the whole batch, and a
          dict with "metrics" (scalars, averaged in the same way) and "batch_stats".
        """
        ...

    def inputs(self, example: dict) -> Iterator[dict[str, np.ndarray]]:
        """Cuts an example into the network's inputs: dicts of arrays, one of them "image"."""
        ...

    def predict(self, variables: Mapping[str, Any], batch: dict) -> dict:
        """Computes the outputs for a batch of inputs: a dict of arrays [batch, ...]."""
        ...

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Combines the outputs for an example's inputs into its prediction."""
        ...

    def evaluator(self) -> Evaluator:
        """Returns a new evaluator."""
        ...

    def picture(self, example: dict, prediction: dict, score: float) -> np.ndarray:
        """Draws an example and its prediction: uint8 [height, width, 3]."""
        ...
