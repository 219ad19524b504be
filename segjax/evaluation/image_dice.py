"""The Dice coefficient of each image: its mean over images and its spread.

Dice of a whole data set (`confusion_matrix.scores`) lets an image count by its number of pixels.
Here every image counts the same, so one bad image shows, as "Metrics reloaded" recommends
(Maier-Hein, Reinke et al., Nature Methods 2024, arXiv:2206.01653).

Scores are summed as whole numbers of units of 2**-40, in int64. So the order of the images, and
their division over batches, devices and processes, change no bit of the result, and equal scores
have a spread of exactly 0. Up to 8 million images fit.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.evaluation.confusion_matrix import mean_of_defined

_UNIT = 2**40


def image_dice_counts(
    matrix: np.ndarray, *, background: int | None = None
) -> dict[str, np.ndarray]:
    """Scores one image, in a form that is summed over images.

    The Dice coefficient of a class is 2 |T ∩ P| / (|T| + |P|) for its pixels T in the truth and P
    in the prediction. A class that occurs in neither has none. A class that occurs in only one of
    them has 0. The foreground mean of the image averages the classes that occur, without
    `background`; an image in which no other class occurs has none.

    Args:
      matrix: the image's confusion matrix [classes, classes] of the pixels that count.
      background: the class that the foreground mean leaves out; None averages all classes.

    Returns:
      int64 arrays: "dice" [classes], in units of 2**-40 and 0 for classes that do not occur;
      "dice_images" [classes], 1 for classes that occur; "foreground_dice" [4], the number of
      foreground means (0 or 1), their sum in units, and the sum of their squares in squared units
      as a remainder and a multiple of 2**40.
    """
    sizes = matrix.sum(0) + matrix.sum(1)
    occurs = sizes > 0
    dice = np.where(occurs, 2 * np.diagonal(matrix) / np.maximum(sizes, 1), np.nan)
    foreground = dice if background is None else np.delete(dice, background)
    mean = mean_of_defined(foreground)
    counted = not math.isnan(mean)
    units = round(mean * _UNIT) if counted else 0
    high, low = divmod(units**2, _UNIT)
    return {
        "dice": np.rint(np.nan_to_num(dice) * _UNIT).astype(np.int64),
        "dice_images": occurs.astype(np.int64),
        "foreground_dice": np.array([counted, units, low, high], np.int64),
    }


def image_dice_of_counts(counts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Computes the scores from the sum of `image_dice_counts` over images.

    Returns:
      `dice_per_image` float64 [classes], the mean over the images in which a class occurs;
      `mean_dice_per_image` and `std_dice_per_image`, the mean and the standard deviation (divided
      by the number of images) of the images' foreground means; `images_with_dice`, the number of
      images with a foreground mean. Scores without an image are NaN.
    """
    with np.errstate(invalid="ignore"):
        per_class = counts["dice"] / _UNIT / counts["dice_images"]
    images, total, low, high = map(int, counts["foreground_dice"])
    mean = spread = math.nan
    if images:
        mean = total / (images * _UNIT)
        # Whole numbers have no rounding error that a small difference of squares could magnify.
        spread = math.sqrt(images * (high * _UNIT + low) - total**2) / (images * _UNIT)
    return {
        "dice_per_image": per_class,
        "mean_dice_per_image": mean,
        "std_dice_per_image": spread,
        "images_with_dice": images,
    }
