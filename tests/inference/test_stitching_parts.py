"""Averages of windows that come part by part, against those of the whole image."""

import numpy as np
import pytest

from segjax.inference.coverings import SlidingWindow
from segjax.inference.tiling import Tiling

COVERINGS = [
    SlidingWindow((8, 8), (8, 8)),
    SlidingWindow((9, 7), (2, 3)),
    SlidingWindow((8, 10), (5, 9)),
    Tiling((12, 16), (6, 8), multiple=4),
    Tiling((9, 9), (5, 3), multiple=1),
]


@pytest.mark.parametrize("covering", COVERINGS)
@pytest.mark.parametrize("size", [(5, 4), (8, 8), (23, 31), (40, 9)])
def test_parts_cover_the_image_once_and_are_those_of_the_whole_bit_for_bit(covering, size):
    rng = np.random.default_rng(0)
    kept = covering.size if isinstance(covering, SlidingWindow) else covering.output_size
    count = len(covering.positions(size))
    outputs = [rng.random((*kept, 3)).astype(np.float32) for _ in range(count)]
    expected = covering.stitch(outputs, size)
    found, seen = np.zeros_like(expected), np.zeros(size, int)
    rows = []
    for row, column, part in covering.stitch_parts(iter(outputs), size):
        place = np.s_[row : row + part.shape[0], column : column + part.shape[1]]
        found[place], rows = part, [*rows, row]
        seen[place] += 1
    assert (seen == 1).all()
    assert rows == sorted(rows)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_too_few_or_too_many_outputs_are_refused():
    covering, output = SlidingWindow((4, 4), (4, 4)), np.zeros((4, 4, 2), np.float32)
    for count in (3, 5):
        with pytest.raises(ValueError, match=r"windows with|more"):
            list(covering.stitch_parts([output] * count, (8, 8)))
