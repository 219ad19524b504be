"""The mean of a network's outputs for windows that cover an image, one window at a time."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


def image_size(image_shape: Sequence[int]) -> tuple[int, int]:
    """Takes (height, width) from [height, width, ...]; ValueError for an image without pixels."""
    if len(image_shape) < 2 or min(image_shape[:2]) < 1:
        raise ValueError(f"expected an image [height, width, ...], found shape {image_shape}")
    return image_shape[0], image_shape[1]


def checked_outputs(
    outputs: Iterable[np.ndarray], *, count: int, size: tuple[int, int], covering
) -> Iterator[np.ndarray]:
    """Passes the outputs on, one at a time, and makes sure that they belong to the covering.

    Raises:
      ValueError: not `count` outputs, or one that is not [*size, ...].
      TypeError: integer outputs, which would be class ids: these have no mean.
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


def weighted_mean(
    outputs: Iterable[np.ndarray],
    size: tuple[int, int],
    *,
    starts: Sequence[Sequence[int]],
    weights: Sequence[np.ndarray],
) -> np.ndarray:
    """Averages outputs that overlap: an image [height, width, ...], float32 (or float64).

    The windows stand on a product grid and their weights are products, so the sum of weights that
    a mean divides by is a product too: normalised along each axis, the weights of every pixel sum
    to one, and the mean is one pass of additions.

    Args:
      outputs: [window height, window width, ...] at each row of `starts`, and there at each column.
      size: height and width of the image; what windows have beyond it is left out.
      starts: the rows, and the columns, at which windows begin.
      weights: [window height] and [window width]; a pixel's weight is their product.
    """
    rows, columns = (
        _normalised(of_axis, window) for of_axis, window in zip(starts, weights, strict=True)
    )
    mean = None
    for (row, column), output in zip(itertools.product(*starts), outputs, strict=True):
        if mean is None:
            dtype = np.result_type(output.dtype, np.float32)
            mean = np.zeros((*size, *output.shape[2:]), dtype)
        window = mean[row : row + output.shape[0], column : column + output.shape[1]]
        inside = np.s_[: window.shape[0], : window.shape[1]]
        share = np.outer(rows[row], columns[column])[inside]
        window += output[inside] * np.expand_dims(share, tuple(range(2, output.ndim)))
    return mean


def _normalised(starts: Sequence[int], window: np.ndarray) -> Mapping[int, np.ndarray]:
    """Along one axis, each window's weights over the sum of all windows' weights, by start."""
    total = np.zeros(starts[-1] + len(window))
    for start in starts:
        total[start : start + len(window)] += window
    return {
        start: (window / total[start : start + len(window)]).astype(np.float32) for start in starts
    }
