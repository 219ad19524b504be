"""Sums metrics over the examples of a data set and over processes."""

import io
from collections.abc import Sequence

import numpy as np

from segjax.evaluation.metrics import Metric


class SummingEvaluator:
    """An evaluator whose metrics are sums over examples.

    Args:
      metrics: see `segjax.evaluation.metrics`; the first also scores single examples. `update` and
        `result` raise a ValueError if two metrics have a result of the same name.
    """

    def __init__(self, metrics: Sequence[Metric]):
        self._metrics = tuple(metrics)
        self._sums = {}

    def update(self, example: dict, prediction: dict) -> float:
        """Adds one example; returns its score by the first metric, NaN if undefined."""
        score, first = float("nan"), not self._sums
        for place, metric in enumerate(self._metrics):
            counts = metric.counts(example, prediction)
            if place == 0:
                score = metric.example_score(counts)
            for name, value in counts.items():
                self._add(f"{place}/{name}", value)
        if first:
            self.result()  # finds colliding names now, not after the last example
        return score

    def state(self) -> bytes:
        """Returns the sums so far, as an uncompressed .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **self._sums)
        return buffer.getvalue()

    def merge(self, state: bytes):
        """Adds the `state` of another process's evaluator for the same metrics."""
        with np.load(io.BytesIO(state), allow_pickle=False) as sums:
            for name, value in sums.items():
                self._add(name, value)

    def result(self) -> dict:
        """Returns all metrics by name; empty if no example was added."""
        result, owners = {}, {}
        for place, metric in enumerate(self._metrics):
            prefix = f"{place}/"
            counts = {
                name.removeprefix(prefix): value
                for name, value in self._sums.items()
                if name.startswith(prefix)
            }
            values = metric.result(counts) if counts else {}
            for name in values:
                if name in owners:
                    raise ValueError(
                        f"two metrics have a result {name!r}: {owners[name]} and {metric}"
                    )
                owners[name] = metric
            result |= values
        return result

    def _add(self, name, value):
        self._sums[name] = self._sums[name] + value if name in self._sums else np.asarray(value)
