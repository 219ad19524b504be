"""Says what has changed since a resumed run last saved a checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from segjax.training.data import RunData


def recorded(schedule: optax.Schedule, step: int, data: RunData) -> dict[str, Any]:
    """Returns the JSON values that a checkpoint records for `changes`.

    Args:
      schedule: step → learning rate.
      step: the number of steps taken.
      data: the run's examples.
    """
    return {
        "learning_rate": float(np.asarray(schedule(step))),
        "examples": data.sizes,
        "pixels": dict(data.pixels),
        "parts": data.parts,
    }


def changes(step: int, before: Mapping, now: Mapping) -> list[str]:
    """Compares two results of `recorded` at the same step; returns a sentence for each change.

    Args:
      before: the checkpoint's values; a checkpoint of an earlier version lacks them.
      now: the values of the run that resumes.
    """
    found = []
    old, new = before.get("learning_rate"), now["learning_rate"]
    if old is not None and not math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-30):
        found.append(
            f"the learning rate of step {step + 1} changes from {old:.6g}, as the run was planned, "
            f"to {new:.6g}"
        )
    for name, count in now["examples"].items():
        was = before.get("examples", {}).get(name, count)
        if was == count:
            continue
        consequence = (
            "they come in another order from here on"
            if name == "train"
            else "its scores do not compare with those before"
        )
        found.append(f"{name} has {count} examples, and had {was}: {consequence}")
    parts = before.get("parts", 1)
    if parts != now["parts"]:
        found.append(
            f"training reads {now['parts']} parts of the data, and read {parts}: the examples come "
            "in another order from here on"
        )
    types, new_types = before.get("pixels", now["pixels"])["types"], now["pixels"]["types"]
    if types != new_types:
        found.append(
            f"the training images are {' and '.join(new_types)}, and were {' and '.join(types)}"
        )
    return found
