"""Sums metrics over the examples of a data set and over processes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.evaluation.bootstrap import percentile_intervals, resampled_counts, weighted_sums
from segjax.evaluation.metrics import Metric

RESAMPLES = 1000
_IDS = "ids"
_AT_A_TIME = 50  # resamples whose sums are held at a time


class SummingEvaluator:
    """An evaluator whose metrics are sums over examples.

    It keeps the counts of each example, in the smallest integers that hold them.

    Args:
      metrics: see `segjax.evaluation.metrics`; the first also scores single examples. `update` and
        `result` raise a ValueError if two metrics have a result of the same name.
    """

    def __init__(self, metrics: Sequence[Metric]):
        self._metrics = tuple(metrics)
        self._ids: list[str] = []
        self._counts: dict[str, list[np.ndarray]] = {}

    def update(self, example: dict, prediction: dict) -> float:
        """Adds an example with its "id"; returns its score by the first metric, or NaN."""
        score, first = float("nan"), not self._ids
        for place, metric in enumerate(self._metrics):
            counts = metric.counts(example, prediction)
            if place == 0:
                score = metric.example_score(counts)
            for name, value in counts.items():
                self._counts.setdefault(f"{place}/{name}", []).append(_smallest(value))
        self._ids.append(str(example["id"]))
        if first:
            self.result()  # finds colliding names now, not after the last example
        return score

    def state(self) -> bytes:
        """Returns the counts of each example so far, as an uncompressed .npz file."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {_IDS: np.array(self._ids, np.str_)}
        arrays |= {name: np.stack(values) for name, values in self._counts.items()}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def merge(self, state: bytes):
        """Adds the `state` of another process's evaluator for the same metrics.

        The order of merging changes nothing.
        """
        with np.load(io.BytesIO(state), allow_pickle=False) as arrays:
            self._ids += arrays[_IDS].tolist()
            for name in arrays.files:
                if name != _IDS:
                    self._counts.setdefault(name, []).extend(arrays[name])

    def result(self) -> dict:
        """Returns all metrics by name; empty if no example was added."""
        return self._scores({name: _total(x) for name, x in self._by_example().items()})

    def intervals(self) -> dict[str, list[float]]:
        """Returns the 95 % interval [low, high] over examples of each metric that is a float.

        It comes from 1,000 resamples; see `segjax.evaluation.bootstrap`. Empty if fewer than two
        examples were added.
        """
        images = len(self._ids)
        if images < 2:
            return {}
        by_example = self._by_example()

        def scores():
            drawn = resampled_counts(images, RESAMPLES)
            for start in range(0, RESAMPLES, _AT_A_TIME):
                weights = drawn[start : start + _AT_A_TIME]
                sums = {name: weighted_sums(weights, x) for name, x in by_example.items()}
                for place in range(len(weights)):
                    yield self._scores({name: x[place] for name, x in sums.items()})

        return percentile_intervals(scores())

    def _by_example(self) -> dict[str, np.ndarray]:
        """Stacks the counts of the examples in the order of their ids, [examples, ...] each."""
        order = sorted(range(len(self._ids)), key=self._ids.__getitem__)
        return {
            name: np.stack([values[place] for place in order])
            for name, values in self._counts.items()
        }

    def _scores(self, sums: Mapping[str, np.ndarray]) -> dict:
        result, owners = {}, {}
        for place, metric in enumerate(self._metrics):
            prefix = f"{place}/"
            counts = {
                name.removeprefix(prefix): value
                for name, value in sums.items()
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


def _smallest(value: np.ndarray) -> np.ndarray:
    """Copies an array; integers become the smallest type of those below that holds them all."""
    value = np.asarray(value)
    if value.dtype.kind == "f":
        return value.copy()
    low, high = int(value.min(initial=0)), int(value.max(initial=0))
    for smaller in (np.uint8, np.uint16, np.uint32):
        if low >= 0 and high <= np.iinfo(smaller).max:
            return value.astype(smaller)
    return value.astype(np.int64)


def _total(counts: np.ndarray) -> np.ndarray:
    return counts.sum(axis=0, dtype=None if counts.dtype.kind == "f" else np.int64)
