"""How a network covers an image of any size: in one pass, or in windows of one size.

Three strategies have the methods of `Covering`: `WholeImage` (DeepLab), `SlidingWindow`
(mmsegmentation) and `segjax.inference.tiling.Tiling` (U-Net). The caller batches the windows. This
predicts many images in one stream of windows::

    windows = (
        covering.extract(image, position)
        for image in images
        for position in covering.positions(image.shape)
    )
    outputs = predict(windows)  # an iterator over probabilities, window by window
    for image in images:
        count = len(covering.positions(image.shape))
        probabilities = covering.stitch(itertools.islice(outputs, count), image.shape)
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import numpy as np

from segjax.inference.stitching import (
    checked_outputs,
    image_size,
    mean_in_parts,
    mean_of_windows,
)


class Covering(Protocol):
    """How one network covers an image. All sizes are (height, width) in pixels."""

    def positions(self, image_shape: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the (row, column) at which each output begins in an image [height, width, ...].

        Positions go row by row. Raises ValueError for an image without pixels.
        """
        ...

    def extract(self, image: np.ndarray, position: tuple[int, int]) -> np.ndarray:
        """Cuts the network's input [h, w, ...] for the output that begins at `position`.

        Images have any dtype. Only the window is read, so that `image` may be a memory map.
        """
        ...

    def stitch(self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]) -> np.ndarray:
        """Joins the predictions for an image's windows; overlapping ones are averaged.

        Args:
          outputs: one array [*kept_size, ...] for each of `positions`, in that order. An iterator
            is read one window at a time. Give probabilities unless you want to average logits.
          image_shape: [height, width, ...] of the image.

        Returns:
          [height, width, ...], float32 (float64 for float64 outputs).

        Raises:
          ValueError: too few or too many outputs, or one of the wrong size.
          TypeError: integer outputs, which would be class ids and have no mean.
        """
        ...

    def kept_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the centre of the network's output that is kept for an input size."""
        ...

    def scaled(self, scale: float) -> Self:
        """Returns the covering of an image enlarged by `scale`, for tests at several scales."""
        ...


@dataclasses.dataclass(frozen=True)
class WholeImage:
    """One pass over the whole image, padded with zeros at the bottom and on the right.

    Zero is the mean of normalised images. DeepLab pads all of VOC to 513 × 513 and Cityscapes to
    1025 × 2049 (TensorFlow DeepLab, `eval_crop_size`). So one shape is compiled, and lengths of
    16·k + 1 put the corners of all strided maps on corner pixels.

    Attributes:
      size: the size that images are padded to.
      multiple: the coarsest output stride of the network. An axis longer than `size` is padded to
        the next length that differs from `size` by a multiple of this.
    """

    size: tuple[int, int] = (513, 513)
    multiple: int = 16

    def __post_init__(self):
        _check_positive(self, "size", *self.size)
        _check_positive(self, "multiple", self.multiple)

    def input_size(self, image_shape: Sequence[int]) -> tuple[int, int]:
        """Returns the size to which an image [height, width, ...] is padded."""
        height, width = (
            size + max(math.ceil((length - size) / self.multiple), 0) * self.multiple
            for length, size in zip(image_size(image_shape), self.size, strict=True)
        )
        return height, width

    def positions(self, image_shape: Sequence[int]) -> list[tuple[int, int]]:
        image_size(image_shape)
        return [(0, 0)]

    def extract(self, image: np.ndarray, position: tuple[int, int]) -> np.ndarray:
        return _padded_window(image, position, self.input_size(image.shape))

    def stitch(self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]) -> np.ndarray:
        height, width = image_size(image_shape)
        size = self.input_size(image_shape)
        (output,) = checked_outputs(outputs, count=1, size=size, covering=self)
        # Averaging a single output would hold two more copies of the largest array.
        return np.asarray(output[:height, :width], np.result_type(output.dtype, np.float32))

    def kept_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        return input_size

    def scaled(self, scale: float) -> "WholeImage":
        """Returns the covering of enlarged images: 513 at scale 0.75 is 385, again 16·k + 1."""

        def enlarged(length: int) -> int:
            rest = length % self.multiple
            return math.ceil((length - rest) * scale / self.multiple - 1e-9) * self.multiple + rest

        height, width = (enlarged(length) for length in self.size)
        return dataclasses.replace(self, size=(height, width))


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Windows of one size at multiples of the stride, the last ones moved back inside the image.

    This is mmsegmentation's slide mode, with two differences. It averages logits where windows
    overlap; here callers average probabilities. It shrinks the window to a smaller image; here
    the image is padded with zeros (the mean of normalised images) at the bottom and on the right,
    so that one shape is compiled.

    Attributes:
      size: height and width of a window.
      stride: rows and columns from one window to the next, at most `size`.
    """

    size: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self):
        _check_positive(self, "size", *self.size)
        _check_positive(self, "stride", *self.stride)
        if any(step > length for step, length in zip(self.stride, self.size, strict=True)):
            raise ValueError(
                f"the stride {self.stride} would leave gaps between windows of {self.size}"
            )

    def positions(self, image_shape: Sequence[int]) -> list[tuple[int, int]]:
        rows, columns = self._starts(image_shape)
        return list(itertools.product(rows, columns))

    def extract(self, image: np.ndarray, position: tuple[int, int]) -> np.ndarray:
        return _padded_window(image, position, self.size)

    def stitch(self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]) -> np.ndarray:
        count = len(self.positions(image_shape))
        return mean_of_windows(
            checked_outputs(outputs, count=count, size=self.size, covering=self),
            image_size(image_shape),
            starts=self._starts(image_shape),
            window=self.size,
        )

    def stitch_parts(
        self, outputs: Iterable[np.ndarray], image_shape: Sequence[int]
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Joins as `stitch`, part by part; see `segjax.inference.stitching.mean_in_parts`."""
        count = len(self.positions(image_shape))
        return mean_in_parts(
            checked_outputs(outputs, count=count, size=self.size, covering=self),
            image_size(image_shape),
            starts=self._starts(image_shape),
            window=self.size,
        )

    def kept_size(self, input_size: tuple[int, int]) -> tuple[int, int]:
        return input_size

    def scaled(self, scale: float) -> "SlidingWindow":
        """Returns the covering itself: the network still sees windows of its training size."""
        return self

    def _starts(self, image_shape: Sequence[int]) -> list[list[int]]:
        """Returns the rows and the columns at which windows begin."""
        return [
            [min(start, room) for start in range(0, room + stride, stride)]
            for room, stride in (
                (max(length - window, 0), stride)
                for length, window, stride in zip(
                    image_size(image_shape), self.size, self.stride, strict=True
                )
            )
        ]


def _padded_window(
    image: np.ndarray, position: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Cuts [*size, ...] from the image at `position`, with zeros beyond the image."""
    top, left = position
    visible = image[top : top + size[0], left : left + size[1]]
    window = np.zeros((*size, *image.shape[2:]), image.dtype)
    window[: visible.shape[0], : visible.shape[1]] = visible
    return window


def _check_positive(covering, name: str, *values: int):
    if min(values) < 1:
        raise ValueError(
            f"{type(covering).__name__}: {name} must be at least 1, found {getattr(covering, name)}"
        )
