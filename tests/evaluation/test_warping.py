import cv2
import numpy as np
import pytest
from scipy import ndimage

from segjax.evaluation.warping import split_merge_counts, warp_truth, warping_error


def topology(cells):
    """Counts 4-connected cells and 8-connected membranes; beyond the image all is membrane."""
    padded = np.pad(cells, 1)
    return ndimage.label(padded)[1], ndimage.label(~padded, np.ones((3, 3)))[1]


def flip(cells, y, x):
    flipped = cells.copy()
    flipped[y, x] ^= True
    return flipped


def slow_warp(truth, prediction, threshold, mask):
    """The documented descent, with topology checked on the whole image at every flip."""
    cells, target = truth.copy(), prediction > threshold
    pixels = [(y, x) for x in range(truth.shape[1]) for y in range(truth.shape[0])]
    pixels.sort(key=lambda pixel: -abs(float(prediction[pixel]) - threshold))
    while True:
        before = cells
        for y, x in pixels:
            simple = topology(flip(cells, y, x)) == topology(cells)
            if mask[y, x] and cells[y, x] != target[y, x] and simple:
                cells = flip(cells, y, x)
        if (cells == before).all():
            return cells


def slow_split_merge(warped, target, radius):
    """Counts by the component ids around each pixel, as the docstring says."""

    def ids_around(cells, y, x):
        labels = np.pad(ndimage.label(cells)[0], 1)[y : y + 3, x : x + 3].ravel()
        return set(np.delete(labels, 4)) - {0}

    splits = merges = 0
    for y, x in np.argwhere(warped != target):
        near = np.zeros_like(warped)
        near[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
        between = len(ids_around(warped, y, x)) >= 2
        if not warped[y, x]:
            merges += between
        else:
            splits += between or len(ids_around(flip(warped, y, x) & near, y, x)) >= 2
    return splits, merges


def smooth_noise(seed, shape=(9, 10), sigma=1.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return ((noise - noise.min()) / (noise.max() - noise.min())).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["probabilities", "binary", "masked"])
def test_warp_agrees_with_flipping_what_keeps_the_topology(seed, kind):
    truth, prediction = smooth_noise(seed) > 0.5, smooth_noise(seed + 10)
    mask = np.ones(truth.shape, bool)
    if kind == "binary":
        prediction = prediction > 0.5
    if kind == "masked":
        mask = np.random.default_rng(seed).random(truth.shape) < 0.7
    warped = warp_truth(truth, prediction, threshold=0.4, mask=mask)
    np.testing.assert_array_equal(warped, slow_warp(truth, prediction, 0.4, mask))
    assert (warped != truth).any()


@pytest.mark.parametrize("seed", range(4))
def test_warp_of_a_tiny_image_is_among_all_that_can_be_reached(seed):
    truth, target = np.random.default_rng(seed).random((2, 3, 3)) < 0.6
    reached, border = {truth.tobytes()}, [truth]
    while border:
        cells = border.pop()
        for y, x in np.ndindex(cells.shape):
            flipped = flip(cells, y, x)
            if flipped.tobytes() not in reached and topology(flipped) == topology(cells):
                reached.add(flipped.tobytes())
                border.append(flipped)
    warped = warp_truth(truth, target)
    assert warped.tobytes() in reached
    least = min(np.sum(np.frombuffer(cells, bool) != target.ravel()) for cells in reached)
    assert least <= np.sum(warped != target) <= np.sum(truth != target)


def test_warp_keeps_the_topology_of_large_images():
    truth, prediction = smooth_noise(0, (80, 90), 2) > 0.5, smooth_noise(1, (80, 90), 2)
    warped = warp_truth(truth, prediction)
    assert topology(warped) == topology(truth)
    assert np.sum(warped != (prediction > 0.5)) < 0.3 * np.sum(truth != (prediction > 0.5))


def cells_with_wall(column=5, width=1):
    """Two cells of 9 rows side by side, with a membrane between them."""
    cells = np.ones((9, 12), bool)
    cells[:, column : column + width] = False
    return cells


def with_pixels(cells, rows, columns, value):
    changed = cells.copy()
    changed[rows, columns] = value
    return changed


ONE_CELL = np.pad(np.ones((7, 10), bool), 1)
HAND_CASES = {
    "nothing changed": (cells_with_wall(), cells_with_wall(), 0, (0, 0)),
    "wall moved by its width": (cells_with_wall(5), cells_with_wall(6), 0, (0, 0)),
    # The pixels between the two places agree, so none of them may be flipped.
    "wall moved beyond its width": (cells_with_wall(5), cells_with_wall(7), 9 + 1, (1, 9)),
    "wall wider": (cells_with_wall(5), cells_with_wall(4, width=4), 0, (0, 0)),
    "wall bent": (
        cells_with_wall(),
        with_pixels(with_pixels(cells_with_wall(), 4, 5, True), slice(3, 6), 6, False),
        0,
        (0, 0),
    ),
    "gap of one": (cells_with_wall(), with_pixels(cells_with_wall(), 4, 5, True), 1, (0, 1)),
    "gap of three": (
        cells_with_wall(),
        with_pixels(cells_with_wall(), slice(3, 6), 5, True),
        3,
        (0, 3),
    ),
    "wall gone": (cells_with_wall(), np.ones((9, 12), bool), 9, (0, 9)),
    "new wall": (np.ones((9, 12), bool), cells_with_wall(), 1, (1, 0)),
    "new hole": (ONE_CELL, with_pixels(ONE_CELL, 4, 4, False), 1, (0, 0)),
    "new ring of membrane": (
        ONE_CELL,
        with_pixels(with_pixels(ONE_CELL, slice(3, 6), slice(3, 6), False), 4, 4, True),
        8,
        None,
    ),
    "cell gone": (ONE_CELL, np.zeros_like(ONE_CELL), 1, (0, 0)),
    "new cell": (np.zeros_like(ONE_CELL), ONE_CELL, 70, (0, 0)),
}


@pytest.mark.parametrize("case", HAND_CASES)
def test_hand_computed_errors(case):
    truth, target, wrong, split_merge = HAND_CASES[case]
    assert warping_error(truth, target) == wrong / truth.size
    if split_merge is not None:
        assert split_merge_counts(warp_truth(truth, target), target) == split_merge


def test_diagonal_membrane_of_one_pixel_separates():
    truth = ~np.eye(8, dtype=bool)
    closed = truth.copy()
    closed[4, 4] = True
    assert warping_error(truth, closed) == 1 / 64
    assert split_merge_counts(truth, closed) == (0, 1)


def test_pixels_outside_the_mask_stay_and_count():
    truth, target = cells_with_wall(5), cells_with_wall(6)
    mask = np.ones(truth.shape, bool)
    mask[4] = False
    warped = warp_truth(truth, target, mask=mask)
    np.testing.assert_array_equal(warped[4], truth[4])
    assert warping_error(truth, target, mask=mask) >= 2 / truth.size


@pytest.mark.parametrize("radius", [2, 20])
@pytest.mark.parametrize("seed", range(4))
def test_split_and_merge_pixels_agree_with_a_search_at_each(seed, radius):
    truth, target = smooth_noise(seed, (16, 17)) > 0.5, smooth_noise(seed + 20, (16, 17)) > 0.45
    warped = warp_truth(truth, target)
    expected = slow_split_merge(warped, target, radius)
    assert split_merge_counts(warped, target, radius=radius) == expected
    assert sum(expected) > 0


def test_ring_is_split_only_as_seen_in_the_window():
    # A ring without one pixel is still one cell, but near that pixel it looks like two.
    ring = np.zeros((30, 30), bool)
    ring[5:25, 5:25] = True
    ring[6:24, 6:24] = False
    cut = with_pixels(ring, 5, 15, False)
    assert split_merge_counts(ring, cut, radius=5) == (1, 0)
    assert split_merge_counts(ring, cut, radius=25) == (0, 0)


def test_cell_pixel_that_touches_a_second_cell_at_a_corner_is_a_split():
    cells = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    assert split_merge_counts(cells, with_pixels(cells, 0, 1, False)) == (1, 0)
    assert split_merge_counts(cells, with_pixels(cells, 0, 0, False)) == (0, 0)


def test_threshold_is_exclusive():
    truth = np.ones((3, 3), bool)
    assert warping_error(truth, np.full((3, 3), 0.5), threshold=0.5) == 1 / 9
    assert warping_error(truth, np.full((3, 3), 0.5), threshold=0.4) == 0


def test_real_slice_is_warped_onto_wider_membranes(real_data):
    cells = cv2.imread(str(real_data / "isbi2012" / "train-labels.tif"), cv2.IMREAD_UNCHANGED) > 0
    wider = cv2.erode(cells.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    warped = warp_truth(cells, wider)
    assert np.mean(cells != wider) > 0.08
    assert np.mean(warped != wider) < 0.001
    assert topology(warped) == topology(cells)


@pytest.mark.parametrize(
    ("truth", "prediction", "mask", "message"),
    [
        (np.full((2, 2), 255), np.zeros((2, 2)), None, "found 255; .* pass truth > 0"),
        (np.ones((2, 2)), np.full((2, 2), 1.5), None, r"in \[0, 1\], found 1\.5"),
        (np.ones((2, 2)), np.full((2, 2), np.nan), None, r"in \[0, 1\], found nan"),
        (np.ones((2, 2)), np.ones((2, 3)), None, r"not \(2, 2\) and \(2, 3\)"),
        (np.ones(4), np.ones(4), None, r"one shape \[height, width\]"),
        (np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), "mask must be bool"),
        (np.ones((2, 2)), np.ones((2, 2)), np.ones((3, 2), bool), r"mask .* not bool \(3, 2\)"),
    ],
)
def test_bad_input_is_named(truth, prediction, mask, message):
    with pytest.raises(ValueError, match=message):
        warp_truth(truth, prediction, mask=mask)
