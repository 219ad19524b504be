"""Averages a network's predictions over scaled, flipped and rotated versions of an image.

Augment the image by each view, predict, and average the predictions::

    views = scales_and_flips()
    predictions = (predict(augment(image, view)) for view in views)  # probabilities
    probabilities = average_probabilities(predictions, views, image.shape[:2])

Only the sum and one prediction are held at a time.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from segjax.inference.resizing import enlarged_size, resize_image


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at an image: enlarged, then flipped, then turned.

    Attributes:
      flip: whether left and right are swapped, before the turn.
      quarter_turns: number of counter-clockwise turns by 90 degrees, 0 to 3.
      scale: factor by which the image is enlarged.
    """

    flip: bool = False
    quarter_turns: int = 0
    scale: float = 1.0

    def __post_init__(self):
        if self.quarter_turns not in range(4):
            raise ValueError(f"quarter_turns must be 0, 1, 2 or 3, found {self.quarter_turns}")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, found {self.scale}")


def scales_and_flips(
    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), *, flip: bool = True
) -> tuple[View, ...]:
    """Returns the views of DeepLab's multi-scale test: all scales and, with `flip`, also mirrored.

    The default scales are those of DeepLabv3 on VOC 2012 (Chen et al., 2017, section 4.2).
    """
    flips = (False, True) if flip else (False,)
    return tuple(View(flip=f, scale=scale) for scale, f in itertools.product(scales, flips))


def rotations_and_flips() -> tuple[View, ...]:
    """Returns the eight symmetries of the square (its dihedral group), the identity first.

    Because they form a group, the averaged prediction turns and flips exactly with the image.
    """
    return tuple(
        View(flip, quarter_turns)
        for flip, quarter_turns in itertools.product((False, True), range(4))
    )


def seven_rotated_versions() -> tuple[View, ...]:
    """Returns the seven elements of `rotations_and_flips` other than the identity.

    The U-Net paper's ISBI 2012 result is "averaged over 7 rotated versions of the input data"
    (section 4, table 1). The paper gives no angles, and does not say whether the input itself is
    one of them. Our reading: without interpolation, an image has seven versions beside itself.
    Rotations by seven multiples of 45 degrees would fit the words too, but need interpolation. Use
    all eight unless you reproduce the paper's number.
    """
    return rotations_and_flips()[1:]


def augment(image: np.ndarray, view: View, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Scales, flips and turns an image [height, width, ...] as `view` says.

    `size` (height, width) is the size at scale 1, by default the image's own. If the network wants
    another size, pass it here, and the image is interpolated only once. If the size does not
    change, the result is a NumPy view: no copy, no interpolation. One or three quarter turns swap
    height and width.
    """
    image = resize_image(image, enlarged_size(size or image.shape, view.scale))
    return np.rot90(image[:, ::-1] if view.flip else image, view.quarter_turns)


def augmented_size(size: Sequence[int], view: View) -> tuple[int, int]:
    """Computes height and width of `augment`'s result for a `size` [height, width, ...]."""
    height, width = enlarged_size(size, view.scale)
    return (width, height) if view.quarter_turns % 2 else (height, width)


def restore(prediction: np.ndarray, view: View, size: tuple[int, int]) -> np.ndarray:
    """Inverts `augment`: maps a prediction [height, width, ...] to the image's own frame.

    The prediction is resized to the image's `size` (height, width), turned and flipped back.

    Raises:
      ValueError: the prediction does not have the proportions of the image.
    """
    height, width = size[::-1] if view.quarter_turns % 2 else size
    # The most that two roundings, to the network's size and to the view's, can contribute.
    slack = (view.scale + 1) / 2 * (height + width)
    if abs(prediction.shape[0] * width - prediction.shape[1] * height) > slack:
        raise ValueError(
            f"the prediction {prediction.shape} from {view} does not have the proportions of an "
            f"image of {size[0]} × {size[1]} pixels"
        )
    upright = np.rot90(resize_image(prediction, (height, width)), -view.quarter_turns)
    return upright[:, ::-1] if view.flip else upright


def average_probabilities(
    predictions: Iterable[np.ndarray], views: Sequence[View], size: tuple[int, int]
) -> np.ndarray:
    """Averages the probabilities of all views, each in the frame of its view.

    DeepLab averages probabilities over scaled and flipped inputs. Several re-implementations
    average logits; then one over-confident view can outvote the others.

    Args:
      predictions: [height, width, ...] for each view, in order; an iterator is read one by one.
      views: at least one.
      size: height and width of the image.

    Returns:
      [*size, ...] in the frame of the image, float32 (float64 for float64 predictions).

    Raises:
      ValueError: there is no view; there are more or fewer predictions than views; predictions
        differ in shape, or from the image in proportions; or values are outside [0, 1].
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
        prediction = np.asarray(prediction)
        low, high = prediction.min(), prediction.max()
        # Half precision may round to slightly outside [0, 1]. NaN fails the comparison as well.
        if not (low >= -0.01 and high <= 1.01):
            raise ValueError(
                f"expected probabilities in [0, 1], found values from {low} to {high}: "
                f"apply softmax or sigmoid before averaging"
            )
        prediction = prediction.astype(np.result_type(prediction.dtype, np.float32), copy=False)
        prediction = restore(prediction, view, size)
        if total is None:  # a single view is not copied
            total = prediction.copy() if len(views) > 1 else prediction
            continue
        if prediction.shape != total.shape:
            raise ValueError(
                f"expected predictions for one image; found one of shape {prediction.shape} "
                f"from {view} beside {total.shape}"
            )
        total += prediction
    assert total is not None  # there is a view
    if len(views) > 1:
        total /= len(views)
    return total
