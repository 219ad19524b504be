"""Defaults that fit a data set and a machine: crops, batch size, steps; weights of classes.

They are rules of thumb, and every one can be set. They depend on the images' sizes, their number
and the devices alone, so that the same command gives the same run again.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

RARE = 0.1  # share of the labelled pixels
EPOCHS = 50  # passes over the training images
FEWEST_STEPS, MOST_STEPS = 500, 10_000
LARGEST_BATCH = {"cpu": 4}  # larger ones make each step of a CPU long
LARGEST_BATCH_ELSEWHERE = 16


def crop_side(sizes: np.ndarray, *, multiple: int, largest: int, extra: int = 0) -> int:
    """Returns the side of square crops: the largest that fits three quarters of the images.

    Args:
      sizes: height and width of each image, [n, 2].
      multiple: the side is a multiple of this, plus `extra`.
      largest: the largest side.
      extra: what the side has beyond a multiple, such as 1 for DeepLab.
    """
    shorter = np.quantile(np.min(sizes, axis=1), 0.25)
    side = min(int(shorter), largest) - extra
    return max(side // multiple, 1) * multiple + extra


def batch_size(bytes_per_example: float, examples: int) -> int:
    """Returns the largest power of two that fits the devices' memory, a multiple of their number.

    Args:
      bytes_per_example: the memory that a training example takes, estimated.
      examples: the number of training examples.
    """
    devices = jax.local_devices()
    largest = LARGEST_BATCH.get(devices[0].platform, LARGEST_BATCH_ELSEWHERE)
    size = largest
    while size > 1 and (size * bytes_per_example > memory_of(devices[0]) or size > examples):
        size //= 2
    return size * len(devices)


def memory_of(device: Any) -> float:
    """Returns the bytes that training may take on a device; half of a CPU's main memory."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return 0.8 * statistics["bytes_limit"]
    try:
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 * 2**30


def number_of_steps(examples: int, batch: int) -> int:
    """Returns the steps of `EPOCHS` passes over the examples, in hundreds, within limits."""
    steps = -(-EPOCHS * examples // batch)
    return int(np.clip(-(-steps // 100) * 100, FEWEST_STEPS, MOST_STEPS))


def describe_balance(pixels: Mapping[int, int], classes: tuple[str, ...]) -> str:
    """Returns the share of the rarest class as a sentence, with what would balance it.

    It is empty if the rarest class has more than a tenth of the labelled pixels.
    """
    counts = np.array([pixels.get(number, 0) for number in range(len(classes))], np.float64)
    rarest = int(np.argmin(counts))
    share = counts[rarest] / max(counts.sum(), 1)
    if share > RARE:
        return ""
    weight = class_weights("root", pixels, len(classes))[rarest]
    return (
        f"the rarest class is {classes[rarest]}, with {100 * share:.2g} % of the labelled pixels; "
        f"--loss.class-weights root would weight them by {weight:.2g}"
    )


def class_weights(
    rule: Literal["root", "balanced"], pixels: Mapping[int, int], count: int
) -> tuple[float, ...]:
    """Computes a weight for each class, with a mean of 1 over the labelled pixels.

    "balanced" weights are proportional to 1 / pixels, so that all classes count alike (King and
    Zeng, Political Analysis, 2001; scikit-learn's class_weight="balanced"). "root" weights are
    proportional to 1 / √pixels, half way on a logarithmic scale to no weights: a class with a
    hundredth of the pixels counts a tenth (Mahajan et al., arXiv:1805.00932, balance by the root).
    The mean of 1 keeps the size of the loss, and so the learning rate. A class without pixels has
    the largest weight of the others.

    Args:
      rule: the rule.
      pixels: the pixels of each class id.
      count: the number of classes.

    Returns:
      The weights, rounded to four digits.
    """
    counts = np.array([pixels.get(number, 0) for number in range(count)], np.float64)
    present = counts > 0
    power = {"root": 0.5, "balanced": 1.0}[rule]
    raw = np.where(present, np.maximum(counts, 1) ** -power, 0.0)
    raw = np.where(present, raw, raw.max(initial=0.0))
    weights = raw * counts.sum() / max(np.sum(raw * counts), 1e-300)
    return tuple(float(f"{weight:.4g}") for weight in weights)
