import cv2
import numpy as np
import pytest

from segjax.data.sources.synthetic import MIN_AREA, _part_touching, synthetic_cells


@pytest.fixture(scope="module")
def pictures():
    return [synthetic_cells(np.random.default_rng(seed)) for seed in range(4)]


def foreground_iou(predicted, foreground):
    return (predicted & foreground).sum() / (predicted | foreground).sum()


def near_two_cells(instances):
    """Background pixels with two different cells among their 5×5 neighbours."""
    ids = instances.astype(np.float32)
    window = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(ids, window)
    lowest = cv2.erode(np.where(ids > 0, ids, np.float32(np.inf)), window)
    return (instances == 0) & (lowest < highest)


def test_the_generator_alone_decides_the_picture(pictures):
    again = synthetic_cells(np.random.default_rng(0))
    np.testing.assert_array_equal(again[0], pictures[0][0])
    np.testing.assert_array_equal(again[1], pictures[0][1])
    assert not np.array_equal(pictures[0][0], pictures[1][0])


def test_shapes_and_types_are_those_of_an_example():
    image, instances = synthetic_cells(np.random.default_rng(0), size=(70, 110))
    assert image.shape == (70, 110, 1)
    assert image.dtype == np.uint8
    assert instances.shape == (70, 110)
    assert instances.dtype == np.int32


def test_each_cell_is_one_component_of_the_foreground(pictures):
    for _, instances in pictures:
        count, components = cv2.connectedComponents(np.uint8(instances > 0), connectivity=8)
        pairs = np.unique(np.stack([components.ravel(), instances.ravel()]), axis=1)
        assert pairs.shape[1] == count == instances.max() + 1


def test_cells_are_numbered_without_gaps_and_none_is_a_crumb(pictures):
    for _, instances in pictures:
        areas = np.bincount(instances.ravel())[1:]
        assert areas.min() >= MIN_AREA


def test_crumbs_and_smaller_pieces_are_dropped_and_the_rest_is_renumbered():
    owner = np.zeros((20, 60), np.int32)
    owner[1:4, 1:4] = 1  # a crumb
    owner[1:10, 10:18] = 2  # the smaller piece of cell 2, and the larger
    owner[1:12, 22:30] = 2
    owner[5:15, 40:48] = 3  # touches cell 4
    owner[5:15, 48:58] = 4
    expected = np.zeros_like(owner)
    expected[1:12, 22:30] = 1
    expected[5:15, 40:47] = 2
    expected[5:15, 49:58] = 3
    np.testing.assert_array_equal(_part_touching(owner), expected)


def test_cells_fill_about_half_of_the_picture(pictures):
    for _, instances in pictures:
        assert 0.4 < (instances > 0).mean() < 0.55


def test_less_coverage_gives_fewer_cells():
    _, sparse = synthetic_cells(np.random.default_rng(0), coverage=0.1)
    assert 0.05 < (sparse > 0).mean() < 0.15


def test_most_cells_touch_another(pictures):
    for _, instances in pictures:
        seam = cv2.dilate(np.uint8(near_two_cells(instances)), np.ones((3, 3), np.uint8))
        touching = np.count_nonzero(np.unique(instances[seam > 0]))
        assert touching > 0.5 * instances.max()


def test_seams_are_brighter_than_the_rims_beside_them(pictures):
    for image, instances in pictures:
        seam = near_two_cells(instances)
        inside = cv2.distanceTransform(np.uint8(instances > 0), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        beside = cv2.dilate(np.uint8(seam), np.ones((7, 7), np.uint8)) > 0
        rim = beside & (inside >= 1) & (inside < 3)
        assert image[seam].mean() > image[rim].mean() + 8


def test_cells_have_a_bright_halo(pictures):
    contrasts = []
    for image, instances in pictures:
        outside = cv2.distanceTransform(
            np.uint8(instances == 0), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
        )
        near, far = (outside > 2) & (outside < 4), (outside > 7) & (outside < 10)
        contrasts.append(image[near].mean() - image[far].mean())
    assert np.mean(contrasts) > 4


def test_without_coverage_there_is_only_background():
    image, instances = synthetic_cells(np.random.default_rng(0), size=(40, 50), coverage=0.0)
    assert not instances.any()
    assert image.std() > 3


def test_brightness_alone_does_not_find_the_cells(pictures):
    for image, instances in pictures:
        smooth = cv2.GaussianBlur(image[..., 0], (0, 0), 1.5)
        foreground = instances > 0
        thresholds = range(0, 256, 4)
        best = max(
            max(foreground_iou(smooth > t, foreground), foreground_iou(smooth <= t, foreground))
            for t in thresholds
        )
        assert best < 0.65


def test_cells_differ_in_size_and_brightness(pictures):
    for image, instances in pictures:
        areas = np.bincount(instances.ravel())[1:]
        sums = np.bincount(instances.ravel(), weights=image.ravel())[1:]
        assert areas.std() > 0.3 * areas.mean()
        assert (sums / areas).std() > 8
