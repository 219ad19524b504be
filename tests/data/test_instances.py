"""Touching cells are separated, found again and made whole."""

import numpy as np
import pytest

from segjax.data.instances import (
    SeparateTouching,
    close_gaps,
    label_components,
    separate_touching,
)


def clustered_cells(size=(90, 90), count=14, seed=0):
    """Round cells that share borders: pixels near a centre belong to the nearest one."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(10, np.array(size) - 10, (count, 2))
    distances = np.linalg.norm(np.moveaxis(np.indices(size), 0, -1)[:, :, None] - centres, axis=-1)
    return np.where(distances.min(-1) < 14, distances.argmin(-1) + 1, 0).astype(np.int32)


def chebyshev_to_others(instances):
    """Chebyshev distance from each cell pixel to the nearest pixel of another cell."""
    pixels = np.argwhere(instances > 0)
    ids = instances[tuple(pixels.T)]
    distances = np.abs(pixels[:, None] - pixels[None]).max(-1)
    distances[ids[:, None] == ids[None]] = 10**6
    result = np.full(instances.shape, 10**6)
    result[tuple(pixels.T)] = distances.min(axis=1)
    return result


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (1, [1, 1, 1, 0, 1, 1, 1, 1, 0]),
        (2, [1, 1, 1, 0, 0, 1, 1, 1, 0]),
        (3, [1, 1, 0, 0, 0, 1, 1, 1, 0]),
        (4, [1, 1, 0, 0, 0, 0, 1, 1, 0]),
    ],
)
def test_the_strip_between_two_cells_is_as_wide_as_asked(width, expected):
    instances = np.array([[3, 3, 3, 3, 9, 9, 9, 9, 0]] * 4, np.int32)
    parted = separate_touching(instances, width=width)
    assert parted.dtype == np.uint8
    np.testing.assert_array_equal(parted, [expected] * 4)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_only_pixels_near_another_cell_are_taken_and_no_parts_touch(width):
    instances = clustered_cells((48, 48), 6)
    parted = separate_touching(instances, width=width)
    near = chebyshev_to_others(instances)
    assert not parted[instances == 0].any()
    np.testing.assert_array_equal(parted[near <= width // 2], 0)
    np.testing.assert_array_equal(parted[(near > (width + 1) // 2) & (instances > 0)], 1)
    assert chebyshev_to_others(instances * parted).min() > max(width // 2, 1)


@pytest.mark.parametrize("ids", [(1, 2), (2**24, 2**24 + 1), (70_000, 2**31 - 1)])
def test_large_ids_are_told_apart(ids):
    instances = np.array([[ids[0], ids[0], ids[1], ids[1]]], np.int32)
    np.testing.assert_array_equal(separate_touching(instances, width=2), [[1, 0, 0, 1]])
    gap = np.array([[ids[0], 0, 0, ids[1]]], np.int32)
    np.testing.assert_array_equal(close_gaps(gap, width=2), instances)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_cells_with_straight_borders_come_back_whole(width):
    instances = np.zeros((40, 60), np.int32)
    instances[4:30, 3:20], instances[4:30, 20:41], instances[30:, 3:41] = 1, 2, 3
    instances[5:12, 50:] = 4
    parts = label_components(separate_touching(instances, width=width))
    whole = close_gaps(parts, width=width)
    np.testing.assert_array_equal(whole > 0, instances > 0)
    pairs, counts = np.unique([instances.ravel(), whole.ravel()], axis=1, return_counts=True)
    majority = counts > 50
    assert len(set(pairs[0, majority])) == len(set(pairs[1, majority])) == majority.sum() == 5
    # An odd strip has a middle, which may go to either side.
    assert counts[~majority].sum() <= (width % 2) * (26 + 38)


@pytest.mark.parametrize("seed", range(3))
def test_clustered_cells_come_back_nearly_whole(seed):
    instances = clustered_cells(seed=seed)
    whole = close_gaps(label_components(separate_touching(instances, width=2)), width=2)
    numbers, areas = np.unique(instances[instances > 0], return_counts=True)
    assert (areas > 150).sum() > 8
    for number in numbers[areas > 150]:  # strips remove most of a sliver between neighbours
        cell = instances == number
        found = whole == np.bincount(whole[cell]).argmax()
        assert (cell & found).sum() / (cell | found).sum() > 0.9


def test_closing_gaps_changes_nothing_but_background_between_two_cells():
    instances = np.zeros((30, 50), np.int32)
    instances[5:25, 2:12] = 1
    instances[10:12, 9:12] = 0  # a notch in one cell
    instances[5:25, 14:24] = 2
    instances[5:25, 28:40] = 3
    closed = close_gaps(instances, width=3)
    changed = np.argwhere(closed != instances)
    assert set(changed[:, 1]) <= {9, 10, 11, 12, 13}
    assert (instances[tuple(changed.T)] == 0).all()
    expected = instances.copy()
    expected[5:25, 12], expected[5:25, 13] = 1, 2
    rows = np.r_[5:8, 14:25]  # beyond reach of the notch
    np.testing.assert_array_equal(closed[rows], expected[rows])
    np.testing.assert_array_equal(closed[:, 24:], instances[:, 24:])


def test_components_by_connectivity_and_size():
    foreground = np.array(
        [
            [1, 1, 0, 0, 0],
            [1, 0, 0, 1, 0],
            [0, 1, 0, 0, 1],
        ],
        bool,
    )
    assert label_components(foreground).max() == 4
    np.testing.assert_array_equal(
        label_components(foreground, connectivity=8, min_size=3),
        [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]],
    )
    labels = label_components(np.uint8(foreground) * 7, min_size=2)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.where(np.arange(15).reshape(3, 5) < 6, foreground, 0))


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_pictures(value):
    instances = np.full((6, 7), value, np.int32)
    np.testing.assert_array_equal(separate_touching(instances, width=2), instances)
    np.testing.assert_array_equal(label_components(instances), instances)
    closed = close_gaps(instances, width=2)
    np.testing.assert_array_equal(closed, instances)
    assert closed.dtype == np.int32


def test_the_transform_keeps_ignored_pixels_and_instances():
    instances = np.array([[1, 1, 2, 2, 0, 5]] * 2, np.int32)
    labels = np.array([[1, 1, 1, 1, 0, 255], [1, 255, 1, 1, 0, 1]], np.uint8)
    example = {"id": "a", "labels": labels, "instances": instances}
    result = SeparateTouching(2)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(result["labels"], [[1, 0, 0, 1, 0, 255], [1, 255, 0, 1, 0, 1]])
    assert result["labels"].dtype == np.uint8
    assert result["instances"] is instances
    assert labels[0, 1] == 1


def test_bad_options_are_named():
    instances = np.zeros((4, 4), np.int32)
    for function in (separate_touching, close_gaps):
        with pytest.raises(ValueError, match="got 0"):
            function(instances, width=0)
    with pytest.raises(ValueError, match="4 or 8, got 6"):
        label_components(instances, connectivity=6)
