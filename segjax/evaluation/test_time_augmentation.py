"""Averaging a network's predictions over rotated and flipped versions of an image.

Augment the image by each view, predict, and average what comes back::

    views = rotations_and_flips()
    predictions = (predict(augment(image, view)) for view in views)  # probabilities
    probabilities = average_probabilities(predictions, views)
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class View:
    """One of the eight ways to lay a square grid on itself: a flip, then quarter turns.

    Attributes:
      flip: left and right are exchanged, first.
      quarter_turns: counter-clockwise turns by 90 degrees, 0 to 3, after it.
    """

    flip: bool = False
    quarter_turns: int = 0

    def __post_init__(self):
        if self.quarter_turns not in range(4):
            raise ValueError(f"quarter_turns must be 0, 1, 2 or 3, found {self.quarter_turns}")


def rotations_and_flips() -> tuple[View, ...]:
    """The eight elements of the dihedral group of the square, the identity first.

    Being a group, they make the averaged prediction turn and flip exactly with the image.
    """
    return tuple(
        View(flip, quarter_turns)
        for flip, quarter_turns in itertools.product((False, True), range(4))
    )


def seven_rotated_versions() -> tuple[View, ...]:
    """The seven elements of `rotations_and_flips` other than the identity.

    The U-Net paper's ISBI 2012 result is "averaged over 7 rotated versions of the input data"
    (section 4, table 1) and does not say by which angles, nor whether the input as it stands is
    one of them. This is our reading: without interpolation, the plane has seven versions of an
    image beside the image itself. Rotations by seven multiples of 45 degrees would fit the words
    too, and need interpolation. Prefer all eight where the paper's number is not the point.
    """
    return rotations_and_flips()[1:]


def augment(image: np.ndarray, view: View) -> np.ndarray:
    """The image [height, width, ...] as `view` shows it: a NumPy view, no copy, no interpolation.

    Height and width are exchanged by one and three quarter turns.
    """
    return np.rot90(image[:, ::-1] if view.flip else image, view.quarter_turns)


def restore(prediction: np.ndarray, view: View) -> np.ndarray:
    """The inverse of `augment`: the prediction [height, width, ...] in the image's own frame."""
    upright = np.rot90(prediction, -view.quarter_turns)
    return upright[:, ::-1] if view.flip else upright


def average_probabilities(predictions: Iterable[np.ndarray], views: Sequence[View]) -> np.ndarray:
    """The mean over views of probabilities, each in the frame of its view.

    The mean is of probabilities, as DeepLab's over scaled and flipped inputs, and not of logits as
    in several re-implementations: one over-confident view cannot outvote the others.

    Args:
      predictions: for each view an array [height, width, ...] of probabilities for the augmented
        image; an iterator will do, of which one prediction is held at a time.
      views: those that made them, in the same order.

    Returns:
      [height, width, ...] in the frame of the image, float32 (float64 for float64 predictions).

    Raises:
      ValueError: no view, a number of predictions other than that of views, predictions of
        different sizes, or values outside [0, 1], which cannot be probabilities.
    """
    if not views:
        raise ValueError("expected at least one view to average over, found none")
    total = None
    for view, prediction in itertools.zip_longest(views, predictions):
        if view is None or prediction is None:
            raise ValueError(
                f"expected one prediction for each of {len(views)} views, "
                f"found {'fewer' if prediction is None else 'more'}"
            )
        prediction = restore(np.asarray(prediction), view)
        low, high = prediction.min(), prediction.max()
        # Half-precision rounding may leave [0, 1] a little; NaN fails the comparison as well.
        if not (low >= -0.01 and high <= 1.01):
            raise ValueError(
                f"expected probabilities in [0, 1], found values from {low} to {high}: "
                f"apply softmax or sigmoid before averaging"
            )
        if total is None:
            total = np.zeros(prediction.shape, np.result_type(prediction.dtype, np.float32))
        if prediction.shape != total.shape:
            raise ValueError(
                f"expected predictions for one image; found one of shape {prediction.shape} "
                f"from {view} beside {total.shape}"
            )
        total += prediction
    return total / len(views)
