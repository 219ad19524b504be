"""The results that both sides of a comparison save, and how much they differ."""

from collections.abc import Callable

import numpy as np


class Operator:
    """A call to time. Reading its note writes the last result to a file.

    Args:
      call: the work.
      path: the .npz file.
      arrays: converts the call's result to NumPy arrays by name, in segjax's layout.
    """

    def __init__(self, call: Callable, path: str, arrays: Callable[..., dict]):
        self._call, self._path, self._arrays, self._result = call, path, arrays, None

    def __call__(self):
        self._result = None
        self._result = self._call()

    @property
    def note(self) -> str:
        np.savez(self._path, **self._arrays(self._result))
        return ""


def difference(ours: dict, theirs: dict) -> str:
    """Describes how results differ.

    For floats it gives the largest difference relative to the array's largest value, for other
    values the number that differ.
    """
    if set(ours) != set(theirs):
        return f"{sorted(ours)} is not {sorted(theirs)}"
    parts, relative = [], []
    for name, mine in ours.items():
        other = theirs[name]
        if mine.shape != other.shape:
            parts.append(f"{name} {mine.shape} is not {other.shape}")
        elif mine.dtype.kind == "f":
            largest = max(np.abs(other).max(), np.finfo(np.float32).tiny)
            relative.append(np.abs(mine - other).max() / largest)
        else:
            parts.append(f"{(mine != other).sum()} of {mine.size} {name}")
    parts += [f"{max(relative):.1e}"] if relative else []
    return ", ".join(parts)


def label_difference(ours: dict, theirs: dict) -> str:
    """Describes how marginals differ: by each pixel's largest difference, and in the labels."""
    mine, other = ours["marginals"], theirs["marginals"]
    same = (mine.argmax(axis=-1) == other.argmax(axis=-1)).mean()
    mean = np.abs(mine - other).max(axis=-1).mean()
    return f"{mean:.4f} in the mean, equal labels {100 * same:.2f} %"
