"""Objects across the windows of a large image: drawn once, and found in perfect windows."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from segjax.coco import run_lengths as rle
from segjax.inference.instance_tiles import InstanceTiles, Window, join_windows

SIDE = 40
TILES = InstanceTiles(SIDE, 0.25)


def seen_in(window, masks, *, labels=None, scores=None):
    """What a perfect detector finds in a window: each mask cut at the border, by its tight box."""
    found = {"boxes": [], "scores": [], "classes": [], "masks": []}
    for number, mask in enumerate(masks):
        part = window.cut(mask)
        if not part.any():
            continue
        rows, columns = (np.flatnonzero(part.any(axis=axis)) for axis in (1, 0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        found["boxes"].append((left, top, right, bottom))
        found["scores"].append(0.9 if scores is None else scores[number])
        found["classes"].append(1 if labels is None else labels[number])
        found["masks"].append((int(top), int(left), part[top:bottom, left:right]))
    found["boxes"] = np.array(found["boxes"], np.float32).reshape(-1, 4)
    return found


def joined(masks, size, tiles=TILES, **options):
    windows = tiles.windows(size)
    return join_windows([seen_in(window, masks, **options) for window in windows], windows, size)


def disc(size, row, column, radius):
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def as_set(masks):
    return {np.packbits(mask).tobytes() for mask in masks}


def test_windows_cover_an_image_with_one_size_and_the_overlap():
    windows = TILES.windows((100, 31))
    assert {window.size for window in windows} == {(40, 31)}
    assert [window.top for window in windows] == [0, 30, 60]
    assert TILES.windows((40, 40)) == [Window(0, 0, 40, 40)]
    for window, following in itertools.pairwise(windows):
        assert window.bottom - following.top >= 10


@pytest.mark.parametrize("overlap", [0.25, 0.4, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_each_object_comes_out_once_with_its_own_mask(seed, overlap):
    """Random objects smaller and larger than windows, some a pixel apart, seen perfectly.

    Where windows see too little of one to tell, they would not join; so each object is connected.
    """
    rng, size = np.random.default_rng(seed), (117, 131)
    smooth = ndimage.gaussian_filter(rng.normal(size=size), 5)
    parts, count = ndimage.label(smooth > np.quantile(smooth, 0.7))
    masks = [parts == number for number in range(1, count + 1)]
    assert max(np.ptp(np.nonzero(mask), axis=1).max() for mask in masks) > SIDE
    found = joined(masks, size, InstanceTiles(SIDE, overlap))
    assert as_set(map(rle.decode, found["masks"])) == as_set(masks)
    assert len(found["masks"]) == len(masks)
    for mask, (x_min, y_min, x_max, y_max) in zip(found["masks"], found["boxes"], strict=True):
        rows, columns = np.nonzero(rle.decode(mask))
        assert (y_min, x_min) == (rows.min(), columns.min())
        assert (y_max, x_max) == (rows.max() + 1, columns.max() + 1)


def test_an_object_longer_than_three_windows_is_the_union_of_its_parts():
    size = (40, 200)
    bar = np.zeros(size, bool)
    bar[15:25, 3:190] = True
    found = joined([bar], size)
    assert len(TILES.windows(size)) > 4
    assert len(found["scores"]) == 1
    np.testing.assert_array_equal(rle.decode(found["masks"][0]), bar)
    np.testing.assert_array_equal(found["boxes"], [[3, 15, 190, 25]])


def test_neighbours_at_a_border_stay_apart():
    size = (40, 70)
    masks = [disc(size, 20, 27, 5), disc(size, 20, 38, 5), disc(size, 9, 32, 6)]
    found = joined(masks, size)
    assert as_set(map(rle.decode, found["masks"])) == as_set(masks)


def test_a_part_whose_box_misses_the_border_does_not_suppress_the_rest():
    """The second window sees a part of the bar, but its box does not end at the border."""
    size = (40, 70)
    windows = TILES.windows(size)
    bar, part = (np.zeros(size, bool) for _ in range(2))
    bar[15:25, 5:60], part[15:25, 36:60] = True, True
    found = [seen_in(windows[0], [bar]), seen_in(windows[1], [part], scores=[0.99])]
    result = join_windows(found, windows, size)
    assert as_set(map(rle.decode, result["masks"])) == as_set([bar])


def test_of_two_whole_detections_the_better_one_stays():
    size = (40, 60)
    windows = InstanceTiles(SIDE, 0.5).windows(size)
    exact, rough = disc(size, 20, 30, 6), disc(size, 20, 30, 5)
    found = [
        seen_in(windows[0], [rough], scores=[0.6]),
        seen_in(windows[1], [exact], scores=[0.8]),
    ]
    result = join_windows(found, windows, size)
    np.testing.assert_array_equal(result["scores"], np.float32([0.8]))
    np.testing.assert_array_equal(rle.decode(result["masks"][0]), exact)
    swapped = join_windows([found[0] | {"scores": [0.95]}, found[1]], windows, size)
    np.testing.assert_array_equal(rle.decode(swapped["masks"][0]), rough)


def test_objects_of_two_classes_and_those_that_hardly_overlap_are_two():
    size = (40, 70)
    windows = TILES.windows(size)
    bar = np.zeros(size, bool)
    bar[10:30, 20:60] = True
    found = [seen_in(windows[0], [bar]), seen_in(windows[1], [bar], labels=[2])]
    assert sorted(join_windows(found, windows, size)["classes"].tolist()) == [1, 2]
    lower = np.roll(bar, 18, axis=0)
    found = [seen_in(windows[0], [bar]), seen_in(windows[1], [lower], scores=[0.5])]
    result = join_windows(found, windows, size)
    np.testing.assert_array_equal(result["scores"], np.float32([0.9, 0.5]))


def test_a_sliver_beyond_the_border_belongs_to_the_object_that_is_seen_whole():
    size = (40, 70)
    windows = TILES.windows(size)
    blob = disc(size, 20, 24, 8)  # columns 16 to 32, of which the second window sees three
    sliver = blob.copy()
    sliver[:18] = False  # found badly
    found = [seen_in(windows[0], [blob]), seen_in(windows[1], [sliver], scores=[0.99])]
    result = join_windows(found, windows, size)
    assert as_set(map(rle.decode, result["masks"])) == as_set([blob])


def test_windows_without_detections_give_none():
    result = joined([], (90, 90))
    assert result["boxes"].shape == (0, 4)
    assert result["masks"] == []
    for options, complaint in (
        ({"side": 0}, "tile=0; expected a side of at least 1"),
        ({"side": 9, "overlap": 0.0}, "tile_overlap=0.0; expected above 0"),
        ({"side": 9, "overlap": 0.6}, "at most 0.5"),
    ):
        with pytest.raises(ValueError, match=complaint):
            InstanceTiles(**options)
