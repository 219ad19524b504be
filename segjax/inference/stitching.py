"""Averages the outputs for windows that cover an image, one window at a time."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


def image_size(image_shape: Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) of [height, width, ...]; ValueError for an image without pixels."""
    if len(image_shape) < 2 or min(image_shape[:2]) < 1:
        raise ValueError(f"expected an image [height, width, ...], found shape {image_shape}")
    return image_shape[0], image_shape[1]


def checked_outputs(
    outputs: Iterable[np.ndarray], *, count: int, size: tuple[int, int], covering
) -> Iterator[np.ndarray]:
    """Yields the outputs one at a time after checking that they fit the covering.

    Raises:
      ValueError: there are not `count` outputs, or one is not [*size, ...].
      TypeError: integer outputs, which would be class ids and have no mean.
    """
    for place, output in itertools.zip_longest(range(count), outputs):
        if place is None or output is None:
            raise ValueError(
                f"the image has {count} windows with {covering}; "
                f"found {'fewer' if output is None else 'more'} outputs"
            )
        output = np.asarray(output)
        if output.shape[:2] != tuple(size):
            raise ValueError(
                f"expected outputs of {size[0]} × {size[1]} pixels, found shape {output.shape}"
            )
        if output.dtype.kind in "biu":
            raise TypeError(f"expected probabilities or logits to average, found {output.dtype}")
        yield output


def mean_of_windows(
    outputs: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    starts: Sequence[Sequence[int]],
    window: Sequence[int],
) -> np.ndarray:
    """Averages overlapping outputs to one image [height, width, ...], float32 (or float64).

    The windows stand on a grid, so the number of windows over a pixel is the number of grid rows
    times the number of grid columns there. Outputs are weighted by its inverse and added up.

    Args:
      outputs: [*window, ...] for each position of the grid, row by row.
      size: height and width of the image; parts of windows beyond it are left out.
      starts: the rows and the columns at which windows begin.
      window: height and width of a window.
    """
    rows, columns = (
        _shares(of_axis, length) for of_axis, length in zip(starts, window, strict=True)
    )
    mean = None
    for (row, column), output in zip(itertools.product(*starts), outputs, strict=True):
        if mean is None:
            dtype = np.result_type(output.dtype, np.float32)
            mean = np.zeros((*size, *output.shape[2:]), dtype)
        region = mean[row : row + output.shape[0], column : column + output.shape[1]]
        inside = np.s_[: region.shape[0], : region.shape[1]]
        share = np.outer(rows[row], columns[column])[inside]
        region += output[inside] * np.expand_dims(share, tuple(range(2, output.ndim)))
    assert mean is not None  # every image has a window
    return mean


def _shares(starts: Sequence[int], length: int) -> Mapping[int, np.ndarray]:
    """Maps each start along one axis to its window's share of each pixel, float32 [length]."""
    count = np.zeros(starts[-1] + length)
    for start in starts:
        count[start : start + length] += 1
    return {start: (1 / count[start : start + length]).astype(np.float32) for start in starts}
