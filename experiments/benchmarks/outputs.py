"""What both sides of a comparison leave behind, and how far it differs."""

from collections.abc import Callable

import numpy as np


class Operator:
    """A call to be timed, whose last result is written to a file when its note is asked for.

    Args:
      call: the work.
      path: an .npz file.
      arrays: from the call's result to NumPy arrays by name, in the layout of segjax.
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
    """Floats' largest difference, relative to the largest value; of others, how many differ."""
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
    """Of marginals: each pixel's largest difference in the mean, and the share of equal labels."""
    mine, other = ours["marginals"], theirs["marginals"]
    same = (mine.argmax(axis=-1) == other.argmax(axis=-1)).mean()
    mean = np.abs(mine - other).max(axis=-1).mean()
    return f"{mean:.4f} in the mean, equal labels {100 * same:.2f} %"
