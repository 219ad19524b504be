"""Confidence intervals of a data set's scores, by the bootstrap over its images.

Images are drawn with replacement, as many as the set has, and scored as a set; the interval holds
the middle 95 % of many such scores (the percentile interval of Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13). It says how much a score would vary with other
images of the same kind. It says nothing of other training runs.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

COVERAGE = 0.95


def resampled_counts(images: int, resamples: int, *, seed: int = 0) -> np.ndarray:
    """Returns how often each image is drawn, int64 [resamples, images]; rows sum to `images`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(images, np.full(images, 1 / images), size=resamples)


def percentile_intervals(scores: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns [low, high] for each score that is a float in every resample.

    Resamples in which a score is undefined (NaN) are left out; a score that is always undefined has
    no interval.
    """
    rows = list(scores)
    names = [name for name, value in rows[0].items() if isinstance(value, float)] if rows else []
    tails = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    intervals = {}
    for name in names:
        values = np.array([row[name] for row in rows], np.float64)
        defined = values[~np.isnan(values)]
        if defined.size:
            intervals[name] = np.quantile(defined, tails).tolist()
    return intervals


def weighted_sums(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums the counts of images by how often each is drawn: [resamples, ...].

    Args:
      weights: int64 [resamples, images].
      counts: [images, ...]; sums of integers are exact.
    """
    flat = counts.reshape(len(counts), -1)
    shape = (len(weights), *counts.shape[1:])
    if counts.dtype.kind == "f":
        return (weights.astype(np.float64) @ flat).reshape(shape)
    # Floats have fast products, and hold integers up to 2**53 exactly.
    if int(np.abs(flat).max(initial=0)) * len(counts) < 2**53:
        sums = weights.astype(np.float64) @ flat.astype(np.float64)
        return sums.astype(np.int64).reshape(shape)
    return (weights @ flat.astype(np.int64)).reshape(shape)
