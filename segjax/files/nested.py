"""Nested dicts with one dotted key for each value."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"train.num_steps": 1000} for {"train": {"num_steps": 1000}}; keeps empty dicts."""
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_value(values: dict, name: str, value) -> dict:
    """Returns a nested dict with a value set by dotted name, such as "train.num_steps".

    Keys that are missing are added.
    """
    key, _, rest = name.partition(".")
    if rest:
        inner = values.get(key)
        value = with_value(inner if isinstance(inner, dict) else {}, rest, value)
    return values | {key: value}
