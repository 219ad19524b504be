"""Normalisations by a data set's statistics and by percentiles; `semantic` has those of an image
and of weights for photographs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class StandardizeBands:
    """Computes (image − mean) / std of each band as float32, with the statistics of a data set.

    Unlike `semantic.Standardize` it keeps what the brightness of an image tells.

    Attributes:
      mean, std: of each band, in the unit of the pixels; see `band_statistics`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    dtypes: ClassVar[tuple[str, ...]] = ("uint8", "uint16", "float32")

    def __post_init__(self):
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected one of each "
                "for each band"
            )
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        if image.shape[2] != len(self.mean):
            raise ValueError(
                f"the image has {image.shape[2]} bands, the statistics {len(self.mean)}"
            )
        image -= np.asarray(self.mean, np.float32)
        image /= np.asarray(self.std, np.float32)
        return {**example, "image": image}


@dataclass(frozen=True)
class StretchPercentiles:
    """Maps two percentiles of each band of an image to 0 and 1, float32; other values go beyond.

    Fluorescence images have few bright pixels, which would set the scale of mean and deviation.
    StarDist and CSBDeep (Weigert et al., Nature Methods 2018) normalise so, by the percentiles 1
    and 99.8. A band in which both are equal becomes 0.

    Attributes:
      low, high: the percentiles.
    """

    low: float = 1.0
    high: float = 99.8

    dtypes: ClassVar[tuple[str, ...]] = ("uint8", "uint16", "float32")

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(
                f"percentiles {self.low} and {self.high}; expected 0 ≤ low < high ≤ 100"
            )

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        low, high = np.percentile(image, (self.low, self.high), axis=(0, 1)).astype(np.float32)
        flat = high <= low
        image -= low
        image /= np.where(flat, np.float32(1), high - low)
        image[..., flat] = 0
        return {**example, "image": image}


def band_statistics(images: Iterable[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation of each band over all pixels of images.

    A band that is flat in all images has a deviation of 1, so that it becomes 0.

    Args:
      images: [height, width, bands] each, of any size, with the same bands.

    Raises:
      ValueError: there are no images.
    """
    count, total, squares, shift = 0, 0.0, 0.0, None
    for image in images:
        pixels = image.reshape(-1, image.shape[2]).astype(np.float64)
        if shift is None:
            shift = pixels.mean(axis=0)  # near the mean, so that squares lose no digits
        pixels -= shift
        count += len(pixels)
        total = total + pixels.sum(axis=0)
        squares = squares + np.square(pixels).sum(axis=0)
    if shift is None:
        raise ValueError("no images to take statistics of")
    mean = np.asarray(total / count)
    variance = np.maximum(squares / count - mean**2, 0)
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return tuple((mean + shift).tolist()), tuple(std.tolist())
