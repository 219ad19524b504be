"""Transforms of an example: `transform(example, rng) -> example`, image and truth together.

A transform is a frozen dataclass. It returns a new dict and never writes into its input. All its
randomness comes from `rng`. The image is interpolated. "labels", "second_observer", "instances",
"weights" and "field_of_view" take the nearest pixel, so that ids stay ids. So do other maps of
integers; other maps of floats are interpolated (`segjax.data.sources.protocol.Source`).
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, Self

import cv2
import numpy as np

from segjax.data.augmentation.elastic import elastic_displacement
from segjax.data.augmentation.maps import by_opencv, is_interpolated, maps_of
from segjax.data.augmentation.normalization import Shift, Windows, mean_and_deviation
from segjax.data.sources.protocol import OBJECTS, VALUE_OUTSIDE
from segjax.labels import IGNORE_LABEL

MAX_SIDE = 32766  # cv2.remap counts pixels in 16 bits
_REDRAWS = 10  # at most, for a window with too much of one class

Move = Callable[[np.ndarray, str], np.ndarray]


@dataclass(frozen=True)
class Warp:
    """Cuts a window of a fixed size at a random place, rotated, scaled, mirrored and deformed.

    All of this is one sampling map, so that each array is resampled once. With every option off,
    the result is a plain crop, bit for bit.

    Attributes:
      size: height and width of the result. A smaller picture lies at a random place within the
        window (at its top left in TensorFlow DeepLab and torchvision), and the border is filled.
      rotation: largest angle in degrees, either way, about the centre of the window.
      scale: range of the magnification, drawn uniformly; above 1 things get larger.
      scale_step: distance of the magnifications to draw from, (0.5, 2.0) by 0.25 in DeepLab; None
        draws from the whole range.
      flip_horizontal: mirror left and right in half of the cases.
      flip_vertical: mirror up and down in half of the cases.
      elastic_sigma: strength of the elastic deformation of U-Net (2015, section 3.1): standard
        deviation of the displacements at 3 × 3 nodes over the window, in pixels of the result. The
        paper uses 10; 0 is off.
      interpolation: interpolation of the image; other maps of floats are interpolated bilinearly,
        which keeps them within their range.
      border: fills the area outside the picture with its mirror image (without repeating the edge
        pixel), or with a constant: `fill` in the image, 255 in labels and 0 in everything else.
      fill: value of a constant border, in the image's current units; a tuple for channels.
      cat_max_ratio: limit on the share of one class among the labelled pixels. While a class
        reaches it, the place is drawn again, up to ten times. 0.75 in mmsegmentation; None is off.
      class_balanced: share of the windows whose centre is a pixel of a class that is drawn evenly
        from the picture's classes. Each of its pixels is equally likely; ignored pixels are never
        chosen. nnU-Net (Isensee et al., 2021) does so with a third of its patches, and draws from
        the foreground alone. Such a window may reach beyond the picture, and `cat_max_ratio` does
        not move it. A picture without labelled pixels is cut at a random place. 0 is off.
    """

    size: tuple[int, int]
    _: KW_ONLY
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    scale_step: float | None = None
    flip_horizontal: bool = False
    flip_vertical: bool = False
    elastic_sigma: float = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    border: Literal["mirror", "constant"] = "mirror"
    fill: float | tuple[float, ...] = 0.0
    cat_max_ratio: float | None = None
    class_balanced: float = 0.0

    def __post_init__(self):
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size must be within 1..{MAX_SIDE} pixels a side, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (lowest, highest) and positive, got {self.scale}")
        if self.scale_step is not None:
            extent = self.scale[1] - self.scale[0]
            steps = round(extent / self.scale_step) if self.scale_step > 0 else 0
            if self.scale_step <= 0 or abs(extent - steps * self.scale_step) > 1e-6:
                raise ValueError(
                    f"scale_step must divide the range {self.scale}, got {self.scale_step}"
                )
        if self.cat_max_ratio is not None and not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio must be in (0, 1] or None, got {self.cat_max_ratio}")
        if not 0 <= self.class_balanced <= 1:
            raise ValueError(
                f"class_balanced must be a share in [0, 1], such as 0.33, got {self.class_balanced}"
            )
        for name in ("rotation", "elastic_sigma"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation must be {_one_of(_INTERPOLATIONS)}, got {self.interpolation!r}"
            )
        if self.border not in _BORDERS:
            raise ValueError(f"border must be {_one_of(_BORDERS)}, got {self.border!r}")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        height, width = example["image"].shape[:2]
        if max(height, width) > MAX_SIDE:
            raise ValueError(f"the image is {height} × {width}; Warp takes {MAX_SIDE} a side")
        needed = self.cat_max_ratio is not None or self.class_balanced > 0
        labels = example["labels"] if needed else None
        rows, columns = self.sampling_map((height, width), rng, labels=labels)
        return _move_all(example, lambda array, key: self._sample(array, key, rows, columns))

    def sampling_map(
        self,
        image_size: tuple[int, int],
        rng: np.random.Generator,
        *,
        labels: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws where in a picture of `image_size` (height, width) each pixel of the result lies.

        `cat_max_ratio` and `class_balanced` need the picture's `labels`.

        Returns:
          Rows and columns in the picture, float32 [height, width] each; (0, 0) is the centre of
          the first pixel.
        """
        size = np.array(self.size)
        scale = self._draw_scale(rng)
        room = np.round(image_size - size / scale).astype(int)
        lowest, highest = np.minimum(room, 0), np.maximum(room, 0)
        corner = rng.integers(lowest, highest, endpoint=True)
        rng.random(2)  # two unused draws, so that recorded runs keep their augmentation
        angle = np.deg2rad(rng.uniform(-self.rotation, self.rotation))
        flips = rng.random(2) < (0.5 * self.flip_vertical, 0.5 * self.flip_horizontal)

        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        matrix = (rotation * np.where(flips, -1, 1) / scale).astype(np.float32)
        centre = (corner + (size / scale - 1) / 2).astype(np.float32)
        down = np.arange(self.size[0], dtype=np.float32)[:, None] - (self.size[0] - 1) / 2
        right = np.arange(self.size[1], dtype=np.float32)[None, :] - (self.size[1] - 1) / 2
        if self.elastic_sigma:
            displacement = elastic_displacement(self.size, rng, sigma=self.elastic_sigma)
            down, right = down + displacement[0], right + displacement[1]
        rows, columns = (matrix[i, 0] * down + centre[i] + matrix[i, 1] * right for i in (0, 1))
        # The last draw, and only with this option: recorded runs keep their augmentation.
        if labels is not None and self.class_balanced and rng.random() < self.class_balanced:
            pixel = _draw_pixel(labels, rng)
            if pixel is not None:
                middle = self.size[0] // 2, self.size[1] // 2
                rows, columns = (
                    rows + (pixel[0] - rows[middle]),
                    columns + (pixel[1] - columns[middle]),
                )
                return rows, columns
        if labels is not None and self.cat_max_ratio is not None:
            for _ in range(_REDRAWS):
                seen = self._sample(labels, "labels", rows, columns)
                if _is_varied(seen, self.cat_max_ratio):
                    break
                before, corner = corner, rng.integers(lowest, highest, endpoint=True)
                moved = (corner - before).astype(np.float32)
                rows, columns = rows + moved[0], columns + moved[1]
        return rows, columns

    def _draw_scale(self, rng):
        if self.scale_step is None:
            return rng.uniform(*self.scale)
        steps = round((self.scale[1] - self.scale[0]) / self.scale_step)
        return self.scale[0] + self.scale_step * rng.integers(steps, endpoint=True)

    def _sample(self, array, key, rows, columns):
        if key == "image":
            flags = _INTERPOLATIONS[self.interpolation]
            outside = self.fill if isinstance(self.fill, tuple) else (self.fill,) * 4
        else:
            flags = cv2.INTER_LINEAR if is_interpolated(key, array) else cv2.INTER_NEAREST
            outside = VALUE_OUTSIDE.get(key, 0)
        return cv2.remap(
            array, columns, rows, flags, borderMode=_BORDERS[self.border], borderValue=outside
        )


@dataclass(frozen=True)
class Normalize:
    """Computes (image − mean) / std as float32, with one number or one for each channel.

    A grey image is repeated in as many channels as there are means. An image of other bands has the
    means in turn (the fourth band that of R), as the first layer of weights for photographs is
    adapted; see `segjax.pretrained.initialization.adapt_to_bands`.
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    # Mean and deviation are in values of 0 to 255.
    dtypes: ClassVar[tuple[str, ...]] = ("uint8",)

    def __post_init__(self):
        if not np.all(np.asarray(self.std) > 0):
            raise ValueError(f"std must be positive, got {self.std}")

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        if image.shape[2] == 1 and isinstance(self.mean, tuple):
            image = np.repeat(image, len(self.mean), axis=2)
        # Whole rows: NumPy is slow if its innermost loop runs over 3 channels.
        rows = image.reshape(len(image), -1)
        _, width, channels = image.shape
        rows -= np.tile(np.resize(np.asarray(self.mean, np.float32), channels), width)
        rows /= np.tile(np.resize(np.asarray(self.std, np.float32), channels), width)
        return {**example, "image": image}

    def for_windows(self, windows: Windows) -> Self:
        """Returns the transform itself: each pixel is normalised on its own."""
        return self


@dataclass(frozen=True)
class Standardize:
    """Gives each image mean 0 and standard deviation 1 over all its pixels and channels, float32.

    A flat image becomes 0. The result does not depend on the unit of the pixels.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("uint8", "uint16", "float32")

    def __call__(self, example: dict, rng: np.random.Generator | None) -> dict:
        image = example["image"].astype(np.float32)
        image -= image.mean(dtype=np.float64).astype(np.float32)
        std = image.std(dtype=np.float64).astype(np.float32)
        return {**example, "image": image / std if std > 0 else image}

    def for_windows(self, windows: Windows) -> Shift:
        """Finds the statistics of an image that is read window by window, twice."""
        return Shift(*mean_and_deviation(windows))


@dataclass(frozen=True)
class CenterCrop:
    """Cuts the middle `size` (height, width); an odd extra row or column is cut at the end."""

    size: tuple[int, int]

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        top, left = _margins(example, self.size)
        window = np.s_[top : top + self.size[0], left : left + self.size[1]]
        return _move_all(example, lambda array, key: array[window])


@dataclass(frozen=True)
class CropTruth:
    """Cuts the middle `size` (height, width) of the truth and leaves the image whole.

    Use it for networks whose output is smaller than their input, as the last step: image and truth
    no longer lie over each other. The truth is every map. "second_observer", "instances",
    "weights" and "field_of_view" are left out unless they are in `keep`.
    """

    size: tuple[int, int]
    keep: tuple[str, ...] = ("labels", "weights")

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        truth = {key: value for key, value in example.items() if key not in VALUE_OUTSIDE}
        truth |= {key: example[key] for key in self.keep if key in example}
        return {**CenterCrop(self.size)(truth, rng), "image": example["image"]}


_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_BORDERS = {"mirror": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}


def _is_varied(labels: np.ndarray, ratio: float) -> bool:
    """Whether each class has less than `ratio` of the labelled pixels."""
    counts = _pixels_of_classes(labels)
    return bool(counts.max() < ratio * counts.sum())


def _draw_pixel(labels: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draws a class of the picture, then one of its pixels; None if no pixel is labelled."""
    counts = _pixels_of_classes(labels)
    classes = np.flatnonzero(counts)
    if not classes.size:
        return None
    drawn = classes[rng.integers(classes.size)]
    place = np.flatnonzero(labels == drawn)[rng.integers(counts[drawn])]
    row, column = divmod(int(place), labels.shape[1])
    return row, column


def _pixels_of_classes(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=IGNORE_LABEL)[:IGNORE_LABEL]


def _one_of(names) -> str:
    return " or ".join(repr(name) for name in names)


def _margins(example, size) -> tuple[int, int]:
    """Half of the rows and columns by which the image is larger than `size`."""
    height, width = example["image"].shape[:2]
    if height < size[0] or width < size[1]:
        raise ValueError(f"the image is {height} × {width}, smaller than CenterCrop{size}")
    return (height - size[0]) // 2, (width - size[1]) // 2


def _move_all(example: dict, move: Move) -> dict:
    """Applies `move(array, key)` to the image and to each map over it."""
    objects = [key for key in OBJECTS if key in example]
    if objects:
        raise ValueError(
            f"objects do not move with label maps, but the example has {objects}; "
            "segjax.data.augmentation.instance has the transforms of objects"
        )
    maps = {"image": example["image"], **maps_of(example)}
    return example | {
        key: by_opencv(lambda array, key=key: move(array, key), key, value)
        for key, value in maps.items()
    }
