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


def mean_in_parts(
    outputs: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    starts: Sequence[Sequence[int]],
    window: Sequence[int],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Averages as `mean_of_windows`, bit for bit, and yields each part once it is complete.

    Memory holds one window, and the rows that the next row of windows overlaps.

    Args:
      outputs, size, starts, window: as in `mean_of_windows`.

    Yields:
      (row, column, part [h, w, ...]) row by row of windows; the parts cover the image once.
    """
    shares = [_shares(of_axis, length) for of_axis, length in zip(starts, window, strict=True)]
    stops = [[*of_axis[1:], length] for of_axis, length in zip(starts, size, strict=True)]
    outputs = iter(outputs)
    above = None  # sums of the rows that the windows above share with this row of windows
    for row, next_row in zip(starts[0], stops[0], strict=True):
        below, before = None, None
        height = min(window[0], size[0] - row)
        for column, next_column in zip(starts[1], stops[1], strict=True):
            output = next(outputs)
            width = min(window[1], size[1] - column)
            dtype = np.result_type(output.dtype, np.float32)
            sums = np.zeros((height, width, *output.shape[2:]), dtype)
            done = 0 if before is None else before.shape[1]
            if before is not None:
                sums[:, :done] = before
            if above is not None:
                sums[: len(above), done:] = above[:, column + done : column + width]
            share = np.outer(shares[0][row], shares[1][column])[:height, :width]
            sums += output[:height, :width] * np.expand_dims(share, tuple(range(2, output.ndim)))
            step, across = next_row - row, next_column - column
            yield row, column, sums[:step, :across]
            if step < height:
                if below is None:
                    below = np.zeros((height - step, size[1], *output.shape[2:]), dtype)
                below[:, column:next_column] = sums[step:, :across]
            before = sums[:, across:].copy()
        above = below
    if next(outputs, None) is not None:
        raise ValueError("expected an output for each window, found more")


def _shares(starts: Sequence[int], length: int) -> Mapping[int, np.ndarray]:
    """Maps each start along one axis to its window's share of each pixel, float32 [length]."""
    count = np.zeros(starts[-1] + length)
    for start in starts:
        count[start : start + length] += 1
    return {start: (1 / count[start : start + length]).astype(np.float32) for start in starts}
