"""Normalisations by a data set's statistics and by percentiles; `semantic` has those of an image
and of weights for photographs.

An image that is read window by window is normalised with `for_windows`, which takes a function that
yields all windows of the image, [h, w, bands], at each call. It returns a transform for windows,
whose results are those of the whole image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

Windows = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Shift:
    """Computes (image − mean) / std as float32 for given numbers; a std of 0 divides by nothing."""

    mean: np.float32
    std: np.float32

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        image -= self.mean
        return {**example, "image": image / self.std if self.std > 0 else image}


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

    def for_windows(self, windows: Windows) -> Self:
        """Returns the transform itself: it knows its statistics."""
        return self


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
        return Stretch(low, high)({**example, "image": image}, rng)

    def for_windows(self, windows: Windows) -> "Stretch":
        """Finds the percentiles of an image that is read window by window, twice."""
        low, high = percentiles(windows, (self.low, self.high))
        return Stretch(low, high)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Maps two values of each band to 0 and 1, float32; where both are equal, the band becomes 0.

    Attributes:
      low, high: float32 [bands].
    """

    low: np.ndarray
    high: np.ndarray

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        flat = self.high <= self.low
        image -= self.low
        image /= np.where(flat, np.float32(1), self.high - self.low)
        image[..., flat] = 0
        return {**example, "image": image}


def mean_and_deviation(windows: Windows) -> tuple[np.float32, np.float32]:
    """Computes mean and standard deviation over all pixels and bands, reading an image twice.

    They are those of `semantic.Standardize`, but for the last bit of a sum in float64.
    """
    count, total = 0, 0.0
    for window in windows():
        count += window.size
        total += window.astype(np.float32).sum(dtype=np.float64)
    mean = np.float32(total / count)
    shifted, squares = 0.0, 0.0
    for window in windows():
        rest = (window.astype(np.float32) - mean).astype(np.float64)
        shifted += rest.sum()
        squares += np.square(rest).sum()
    return mean, np.float32(np.sqrt(max(squares / count - (shifted / count) ** 2, 0.0)))


def percentiles(windows: Windows, shares: Iterable[float]) -> np.ndarray:
    """Computes percentiles of each band as `np.percentile` does, float32 [shares, bands].

    A float32 is a sign and a number whose order its bits keep. The first reading counts the upper
    16 bits of all pixels, the second the lower 16 bits of those that decide.
    """
    upper, count = 0, 0
    for window in windows():
        keys = _ordered_bits(window) >> 16
        upper = upper + np.stack([np.bincount(band, minlength=2**16) for band in keys])
        count += keys.shape[1]
    upper = np.asarray(upper)
    places = [share / 100 * (count - 1) for share in shares]
    ranks = sorted({int(rank) for place in places for rank in (place // 1, -(-place // 1))})
    ends = np.cumsum(upper, axis=1)
    bins = np.stack([(ends <= rank).sum(axis=1) for rank in ranks], axis=1)  # [bands, ranks]
    lower = np.zeros((*bins.shape, 2**16), np.int64)
    for window in windows():
        for band, keys in enumerate(_ordered_bits(window)):
            for number, which in enumerate(bins[band]):
                lower[band, number] += np.bincount(
                    keys[keys >> 16 == which] & 0xFFFF, minlength=2**16
                )
    found = {}
    for number, rank in enumerate(ranks):
        which = bins[:, number]
        before = np.take_along_axis(ends - upper, which[:, None], axis=1)
        digits = (np.cumsum(lower[:, number], axis=1) <= rank - before).sum(axis=1)
        found[rank] = _values_of((which.astype(np.uint32) << 16) | digits.astype(np.uint32))
    rows = []
    for place in places:
        pair = np.stack([found[int(place // 1)], found[int(-(-place // 1))]])
        rows.append(np.quantile(pair, np.array([place % 1]), axis=0)[0].astype(np.float32))
    return np.stack(rows)


def _ordered_bits(window: np.ndarray) -> np.ndarray:
    """uint32 [bands, pixels] in the order of the values as float32."""
    bands = window.reshape(-1, window.shape[2]).T.astype(np.float32, order="C").view(np.uint32)
    return np.where(bands >> 31, ~bands, bands | np.uint32(2**31))


def _values_of(bits: np.ndarray) -> np.ndarray:
    """The float32 values of `_ordered_bits`."""
    return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).view(np.float32)


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
