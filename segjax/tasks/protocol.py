"""What the training code knows of a task, and of what scores its predictions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import numpy as np


class Evaluator(Protocol):
    """Adds up scores over examples and processes."""

    def update(self, example: dict, prediction: dict) -> float:
        """Scores one prediction and counts it; returns the example's own score, or NaN."""
        ...

    def state(self) -> bytes:
        """Returns what has been counted so far, for `merge` in another process."""
        ...

    def merge(self, state: bytes) -> None:
        """Adds what another evaluator has counted."""
        ...

    def result(self) -> dict[str, Any]:
        """Returns the metrics by name: numbers, and lists for some."""
        ...


class Task(Protocol):
    """A model, its loss and its decoding, as pure functions of variables and batch.

    `variables` holds the Flax collections "params" and "batch_stats". In `loss`, it also holds
    what else the state of the training has: "frozen", the variables of other networks by name, and
    "ema_params", the moving average of "params".

    Attributes:
      classes: the names of the classes.
      image_channels: numbers of channels that an image may have.
      entries: the entries that an example must have for training and evaluation.
      preprocess: (example, None) → example with a float32 "image". Its `dtypes`, if it has them,
        are the types of pixels that it takes; otherwise it takes "uint8" and "uint16".
    """

    entries: ClassVar[tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def image_channels(self) -> tuple[int, ...]: ...

    @property
    def preprocess(self) -> Callable[[dict, None], dict]: ...

    def init(self, key: Any, batch: dict) -> Mapping[str, Any]:
        """Draws variables for the shapes of a batch."""
        ...

    def prepare(self, batch: dict) -> dict:
        """Adds what depends on the whole batch on all devices, such as a count of valid pixels.

        It runs on a device's share of the batch, before this is cut into micro-batches.
        """
        ...

    def loss(
        self, variables: Mapping[str, Any], batch: dict, key: Any, train: bool
    ) -> tuple[Any, dict]:
        """Computes the loss of a batch.

        Returns:
          A scalar whose mean over devices and micro-batches is the loss of the whole batch, and a
          dict of "metrics" (scalars, averaged likewise) and "batch_stats".
        """
        ...

    def inputs(self, example: dict) -> Iterator[dict[str, np.ndarray]]:
        """Cuts an example into what the network reads at a time: dicts of arrays with "image"."""
        ...

    def predict(self, variables: Mapping[str, Any], batch: dict) -> dict:
        """Computes the outputs for a batch of such inputs: a dict of arrays [batch, ...]."""
        ...

    def merge(self, example: dict, outputs: Iterable[dict]) -> dict:
        """Puts the outputs for the inputs of one example together to its prediction."""
        ...

    def evaluator(self) -> Evaluator:
        """Makes an evaluator that has counted nothing."""
        ...

    def picture(self, example: dict, prediction: dict, score: float) -> np.ndarray:
        """Shows an example and its prediction to people: uint8 [height, width, 3]."""
        ...
