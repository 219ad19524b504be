"""Images without objects: how many of them a training sees."""

from collections.abc import Sequence

import numpy as np


def choose_images(
    object_counts: Sequence[int] | np.ndarray, *, empty_share: float, seed: int = 0
) -> np.ndarray:
    """Chooses the images of a training: all with objects, and some of those without.

    The images without objects are drawn by the seed, and each larger share keeps those of a smaller
    one.

    Args:
      object_counts: the objects of each image, crowds left out.
      empty_share: the largest share that images without objects may have among the chosen ones. 0
        leaves all of them out, 1 keeps all.
      seed: decides which ones are drawn.

    Returns:
      The places of the chosen images, ascending.

    Raises:
      ValueError: the share is not from 0 to 1.
    """
    check_share(empty_share)
    has_objects = np.asarray(object_counts) > 0
    filled, empty = np.flatnonzero(has_objects), np.flatnonzero(~has_objects)
    if empty_share < 1:
        # The product may fall short of a whole number by rounding: 0.1 / 0.9 of 9.
        most = int(empty_share / (1 - empty_share) * len(filled) + 1e-9)
        empty = np.random.default_rng(seed).permutation(empty)[:most]
    return np.sort(np.concatenate([filled, empty]))


def check_share(empty_share: float) -> None:
    """Raises ValueError for a share that is not from 0 to 1."""
    if not 0 <= empty_share <= 1:
        raise ValueError(
            f"input.empty_share: expected a share from 0 to 1, got {empty_share:g}; a percentage? "
            "Divide it by 100"
        )


def note_left_out(object_counts: Sequence[int] | np.ndarray, kept: int, share: float) -> list[str]:
    """Counts the images without objects that are left out, in a sentence; nothing without any."""
    empty = int(np.count_nonzero(np.asarray(object_counts) == 0))
    left_out = len(object_counts) - kept
    if not left_out:
        return []
    return [
        f"{left_out} of {empty} images without objects are left out (input.empty_share {share:g})"
    ]
