"""Transforms of an image's grey values and colours, which leave the truth as it is.

A transform is a frozen dataclass, `transform(example, rng) -> example`, as in
`segjax.data.augmentation.semantic`. It never writes into its input.
"""

from dataclasses import dataclass

import cv2
import numpy as np

Number = float | np.floating


def to_eight_bits(image: np.ndarray, pixel_range: tuple[float, float]) -> np.ndarray:
    """Maps values linearly to 0..255, uint8: the range of photographs and of their weights.

    Values outside the range are clipped, and the result is rounded: augmentation, pictures and
    prepared data sets take 8 bits, as photographs have them.

    Args:
      image: finite numbers of any shape.
      pixel_range: the values that become 0 and 255, such as (0, 65535); see `check_pixel_range`.
    """
    low, high = pixel_range
    scaled = image.astype(np.float32)
    scaled -= np.float32(low)
    scaled *= np.float32(255 / (high - low))
    return np.rint(scaled.clip(0, 255, out=scaled), out=scaled).astype(np.uint8)


def check_pixel_range(pixel_range: tuple[float, float] | None) -> None:
    """Raises ValueError unless a range is None or ascends between finite numbers."""
    if pixel_range is None:
        return
    low, high = pixel_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            f"pixel_range={low:g} {high:g}; expected the lowest and the highest value of the "
            "images, such as 0 65535"
        )


@dataclass(frozen=True, kw_only=True)
class GreyValues:
    """Varies the grey values of the image: gamma, contrast, brightness and noise, in this order.

    All are relative to the range from the image's lowest to its highest value, so that 8- and
    16-bit pictures are treated alike. Each draw holds for all channels and pixels, except noise.
    The result is float32 in the units of the input and not clipped.

    Attributes:
      brightness: largest amount added or subtracted, as a fraction of the range.
      contrast: deviations from the mean are multiplied by a number within 1 ± contrast.
      gamma: the exponent is drawn log-uniformly from 1 / (1 + gamma) to 1 + gamma.
      noise: largest standard deviation of Gaussian noise, as a fraction of the range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "gamma", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.contrast > 1:
            raise ValueError(f"contrast above 1 would invert images, got {self.contrast}")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        brightness = rng.uniform(-self.brightness, self.brightness)
        contrast = 1 + rng.uniform(-self.contrast, self.contrast)
        exponent = (1 + self.gamma) ** rng.uniform(-1, 1)
        sigma = rng.uniform(0, self.noise)
        image = example["image"].astype(np.float32)
        lowest, extent = image.min(), np.ptp(image)
        if extent > 0:
            grey = (image - lowest) / extent
            if self.gamma:
                grey **= np.float32(exponent)
            mean = grey.mean()
            grey = (grey - mean) * np.float32(contrast) + (mean + np.float32(brightness))
            if self.noise:
                grey += np.float32(sigma) * rng.standard_normal(grey.shape, np.float32)
            image = grey * extent + lowest
        return {**example, "image": image}


@dataclass(frozen=True, kw_only=True)
class PhotometricDistortion:
    """Varies brightness, contrast, saturation and hue of a colour image, each in half of the cases.

    This is SSD's distortion (Liu et al., ECCV 2016) as in mmsegmentation: brightness, saturation
    and hue in this order. Contrast comes after brightness in half of the cases, else at the end.
    Values are clipped after each step; mmsegmentation also rounds them to 8 bits.

    Takes RGB from 0 to 255, uint8 or floating point, and returns float32 from 0 to 255.

    Attributes:
      brightness: largest grey level added or subtracted.
      contrast: range of the factor that multiplies all values.
      saturation: range of the factor that multiplies the saturation (in hue, saturation, value).
      hue: largest turn of the hue in degrees. mmsegmentation's 18 counts in steps of 2 degrees.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0

    def __post_init__(self):
        for name in ("brightness", "hue"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("contrast", "saturation"):
            lowest, highest = getattr(self, name)
            if not 0 <= lowest <= highest:
                raise ValueError(f"{name} must be (lowest, highest), got {getattr(self, name)}")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        image = example["image"]
        _check_colours(image)

        def in_half_of_the_cases(lowest, highest, otherwise):
            drawn = np.float32(rng.uniform(lowest, highest))
            return drawn if rng.random() < 0.5 else np.float32(otherwise)

        brightness = in_half_of_the_cases(-self.brightness, self.brightness, 0)
        contrast = in_half_of_the_cases(*self.contrast, 1)
        saturation = in_half_of_the_cases(*self.saturation, 1)
        hue = in_half_of_the_cases(-self.hue, self.hue, 0)
        contrast_before = rng.random() < 0.5

        image = _changed(image.astype(np.float32), 1, brightness)
        if contrast_before:
            image = _changed(image, contrast, 0)
        if saturation != 1 or hue != 0:
            colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            # OpenCV converts hues above 360 degrees correctly, but its vectorised code not below 0.
            colours[..., 0] += hue % 360
            colours[..., 1] = np.minimum(colours[..., 1] * saturation, 1)
            image = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)
        if not contrast_before:
            image = _changed(image, contrast, 0)
        return {**example, "image": image}


def _changed(image: np.ndarray, factor: Number, offset: Number) -> np.ndarray:
    """Computes image · factor + offset in place, clipped to 0 to 255."""
    if factor != 1:
        image *= factor
    if offset != 0:
        image += offset
    return np.clip(image, 0, 255, out=image) if factor != 1 or offset != 0 else image


def _check_colours(image: np.ndarray):
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"PhotometricDistortion needs colours, [height, width, 3], and found {image.shape}; "
            "GreyValues varies grey images"
        )
    floating = image.dtype.kind == "f"
    if image.dtype != np.uint8 and not (floating and image.min() >= 0 and image.max() <= 255):
        raise ValueError(
            f"PhotometricDistortion needs values from 0 to 255, uint8 or floating point; found "
            f"{image.dtype} from {image.min()} to {image.max()}"
        )
