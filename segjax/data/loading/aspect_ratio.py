"""Schedules batches that hold one group of images each, such as one orientation.

The images of a batch are padded to one shape. If landscape and portrait are kept apart, the shape
is 832 × 1344 or 1344 × 832 instead of 1344 × 1344. detectron2 and torchvision collect examples
until a batch of one kind is full, so a batch depends on all earlier examples. Here each group has
its own endless stream, and the number of a batch determines its group.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def orientation_groups(sizes: np.ndarray) -> np.ndarray:
    """Groups images by their sizes (height, width): 1 if taller than wide, else 0, int32 [n]."""
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.shape[1] != 2:
        raise ValueError(f"expected sizes [n, 2], got shape {sizes.shape}")
    return (sizes[:, 0] > sizes[:, 1]).astype(np.int32)


@dataclass(frozen=True, eq=False)
class GroupSchedule:
    """Assigns a group to each batch of an endless stream.

    In every n batches, for n examples, each group has as many batches as it has examples. They are
    spread evenly: the k-th batch of a group of c examples comes at (k + 1/2) / c of the way. So
    over n batches, every group goes through its examples equally often.

    Attributes:
      groups: group of each example, int [n], 0 or more.
    """

    groups: np.ndarray

    def __post_init__(self):
        groups = np.asarray(self.groups)
        if groups.ndim != 1 or groups.dtype.kind not in "iu" or groups.min(initial=0) < 0:
            raise ValueError(
                f"groups must be integers [n] from 0 on, got {groups.dtype} of shape "
                f"{groups.shape}, lowest {groups.min(initial=0)}"
            )

    def of_batch(self, number: int) -> tuple[int, int]:
        """The group of a batch, and the number of batches of that group before it."""
        cycle, place = divmod(number, len(self.groups))
        group = int(self._cycle[place])
        return group, cycle * len(self.members[group]) + int(self._before[place])

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """The indices of the examples of each group, ascending, int [count]."""
        return tuple(np.flatnonzero(self.groups == g) for g in range(np.max(self.groups) + 1))

    @cached_property
    def _cycle(self) -> np.ndarray:
        """The group of each of n batches, int32 [n]."""
        counts = np.bincount(self.groups)
        group = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        rank = np.concatenate([np.arange(count) for count in counts])
        # Unequal fractions of such small numbers stay unequal in float64. Among equal ones, the
        # lower group comes first.
        return group[np.argsort((2 * rank + 1) / counts[group], kind="stable")]

    @cached_property
    def _before(self) -> np.ndarray:
        """The number of earlier batches of the same group, for each of n batches, int32 [n]."""
        before = np.empty(len(self._cycle), np.int32)
        for group in range(len(self.members)):
            places = self._cycle == group
            before[places] = np.arange(np.count_nonzero(places))
        return before
