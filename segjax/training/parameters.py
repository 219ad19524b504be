"""Which parameters a setting acts on: regular expressions over their paths."""

import math
import re
from collections.abc import Sequence

import jax


def path_of(path) -> str:
    """The path of a leaf as text, "backbone/stem/convolution/kernel"."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def matching(params, pattern: str, *, setting: str):
    """Marks the parameters in whose path `pattern` is found, a tree of bool.

    Raises:
      ValueError: it is found in none: a misspelt pattern would otherwise do nothing. The message
        begins with `setting` and lists some paths.
    """
    marks = jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(pattern, path_of(path)) is not None, params
    )
    if not any(jax.tree.leaves(marks)):
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shown = ", ".join(paths[:: math.ceil(len(paths) / 6)])
        raise ValueError(f"{setting}: {pattern!r} is in no parameter's path; some are {shown}")
    return marks


def learning_rate_multipliers(params, multipliers: Sequence[tuple[str, float]]):
    """The product, for each parameter, of the factors whose patterns are in its path."""
    factors = jax.tree.map(lambda _: 1.0, params)
    for pattern, factor in multipliers:
        marks = matching(params, pattern, setting="optimizer.multipliers")
        factors = jax.tree.map(
            lambda old, marked, factor=factor: old * factor if marked else old, factors, marks
        )
    return factors
