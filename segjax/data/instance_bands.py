"""Numbers the objects of an image that is larger than memory, band of rows by band of rows.

The results are those of `segjax.data.instances` on the whole image.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from segjax.data.instances import close_gaps, label_components

Bands = Callable[[], Iterable[np.ndarray]]


def components_in_bands(
    foreground: Bands, *, min_size: int = 0
) -> tuple[int, Callable[[], Iterator[np.ndarray]]]:
    """Numbers the 4-connected components of a foreground; see `instances.label_components`.

    The foreground is read twice. Memory holds a band and two numbers for each component.

    Args:
      foreground: yields the image's rows as bands, bool [rows, width]; each call begins again.
      min_size: components with fewer pixels are dropped.

    Returns:
      The number of components, and a function that yields the bands as int32: 1..n in the order of
      their first pixels, 0 = background.
    """
    parent, sizes = [0], [0]  # by number; 0 is the background

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def numbered() -> Iterator[np.ndarray]:
        first = 0
        for band in foreground():
            parts = label_components(band)
            count = int(parts.max(initial=0))
            yield np.where(parts > 0, parts + first, 0)
            first += count

    last = None
    for band in numbered():
        count = int(band.max(initial=0)) + 1 - len(parent)
        if count > 0:
            sizes += np.bincount(band[band > 0] - len(parent), minlength=count).tolist()
            parent += range(len(parent), len(parent) + count)
        if last is not None:
            touching = (last > 0) & (band[0] > 0)
            for above, below in {
                *zip(last[touching].tolist(), band[0][touching].tolist(), strict=True)
            }:
                one, other = sorted((root(above), root(below)))
                if one != other:  # the lower number has the earlier first pixel
                    parent[other] = one
                    sizes[one] += sizes[other]
        last = band[-1]
    roots = np.array([root(number) for number in range(len(parent))])
    kept = (roots == np.arange(len(roots))) & (np.array(sizes) >= min_size)
    kept[0] = False
    final = (np.cumsum(kept) * kept).astype(np.int32)[roots]
    return int(kept.sum()), lambda: (final[band] for band in numbered())


def close_gaps_in_bands(bands: Iterable[np.ndarray], *, width: int) -> Iterator[np.ndarray]:
    """Fills the strips between cells as `instances.close_gaps`, in bands of the same rows.

    Args:
      bands: the image's rows, [rows, width] cell ids each, 0 = background.
      width: see `close_gaps`.
    """
    reach = 3 * width + 2  # rows that decide a pixel, and more
    rows, heights, done = None, [], 0  # `rows` begin up to `reach` above the first band to yield
    for band in chain(bands, (None,)):
        if band is not None:
            heights.append(len(band))
            rows = band if rows is None else np.concatenate([rows, band])
        if rows is None:
            return
        closed = None
        while heights and (band is None or done + heights[0] + reach <= len(rows)):
            if closed is None:
                closed = close_gaps(rows, width=width)
            yield closed[done : done + heights[0]]
            done += heights.pop(0)
        spare = max(done - reach, 0)
        rows, done = rows[spare:], done - spare


def rows_of_parts(parts: Iterable[tuple[int, int, np.ndarray]], width: int) -> Iterator[np.ndarray]:
    """Joins parts of an image, (row, column, [h, w, ...]) row by row, to bands of whole rows."""
    band, first = None, 0
    for row, column, part in parts:
        if band is None or row != first:
            band, first = np.zeros((len(part), width, *part.shape[2:]), part.dtype), row
        band[:, column : column + part.shape[1]] = part
        if column + part.shape[1] == width:
            yield band
            band = None
