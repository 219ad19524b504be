"""Numbers and rows of ground truth and results; each is checked, and an error names the row."""

import math
import numbers
from collections.abc import Mapping, Sequence

import numpy as np


def finite_numbers(values, name: str) -> list[float]:
    """Finite numbers, some perhaps as text."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name}: expected numbers, found {values!r:.40}") from error
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name}: expected finite numbers, found {values!r:.40}")
    return found


def finite_number(value, name: str) -> float:
    number = as_float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r:.40}; expected a number")
    return number


def score_of(value, name: str) -> float:
    number = as_float(value)
    if math.isnan(number):
        raise ValueError(f"{name}: expected a number as score, found {value!r:.40}")
    return number


def as_float(value) -> float:
    """A number as float; NaN for anything else and for integers beyond floats."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:
        return math.nan


def is_number(value) -> bool:
    return isinstance(value, numbers.Real | np.number)


def image_side(value) -> int:
    return int(value) if is_number(value) and math.isfinite(value) else 0


def listed(value) -> Sequence:
    """A list or tuple as it is, an array as a list; anything else as an empty list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, list | tuple) else []


def require_keys(row, keys: Sequence[str], name: str) -> None:
    for key in keys:
        if not isinstance(row, Mapping) or key not in row:
            raise ValueError(f"{name} has no {key!r}")
