"""Masks are cut out of maps of instances, measured and resampled as windows of an image."""

import itertools

import numpy as np
import pytest

from segjax.coco.masks import paste_mask
from segjax.data.instance_masks import (
    InstancesToObjects,
    coverage,
    crop_mask,
    masks_from_instances,
    resample_mask,
    tight_boxes,
)
from tests.data.discs import SIZE, draw, make_example, whole


@pytest.mark.parametrize("large", [0, 2**30])
def test_the_masks_of_a_map_are_its_ids_one_by_one(large):
    instances = draw()
    instances[instances == 1000] += large
    ids, masks = masks_from_instances(instances)
    np.testing.assert_array_equal(ids, [3, 7, 8, 1000 + large])
    for number, mask, box in zip(ids, masks, tight_boxes(masks), strict=True):
        np.testing.assert_array_equal(paste_mask(mask, SIZE), instances == number)
        rows, columns = np.nonzero(instances == number)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(box, expected)
        assert mask.area == rows.size


def test_a_map_without_instances_has_no_masks_and_an_empty_mask_no_window():
    ids, masks = masks_from_instances(np.zeros((4, 5), np.int32))
    assert (ids.tolist(), masks, tight_boxes(masks).shape) == ([], (), (0, 4))
    empty = crop_mask(np.zeros((4, 5), bool))
    assert (empty.pixels.shape, empty.box, empty.area) == ((0, 0), (0, 0, 0, 0), 0)
    assert not paste_mask(empty, (4, 5)).any()


def test_objects_take_class_box_and_area_from_a_map():
    example = make_example()
    assert example.keys() == {"id", "image", "boxes", "classes", "masks", "crowd", "areas"}
    np.testing.assert_array_equal(example["classes"], [2, 2, 2, 2])
    np.testing.assert_array_equal(example["areas"], [mask.sum() for mask in whole(example)])
    assert not example["crowd"].any()
    assert [example[key].dtype for key in ("boxes", "classes", "areas", "crowd")] == [
        np.float32,
        np.int32,
        np.float32,
        bool,
    ]


def test_ignored_pixels_do_not_count_but_two_classes_or_none_are_an_error():
    rng, instances = np.random.default_rng(0), np.array([[4, 4, 4, 0]], np.int32)
    convert = InstancesToObjects()
    example = {"instances": instances, "labels": np.array([[255, 3, 3, 0]], np.uint8)}
    np.testing.assert_array_equal(convert(example, rng)["classes"], [3])
    for labels in ([1, 3, 3, 0], [0, 0, 0, 0], [255, 255, 255, 0]):
        example["labels"] = np.array([labels], np.uint8)
        with pytest.raises(ValueError, match=r"instance 4 at .* expected one class"):
            convert(example, rng)
    with_crowd = {"instances": instances, "crowd": np.array([True])}
    assert convert(with_crowd, rng)["crowd"].tolist() == [True]


def test_coverage_is_that_of_a_grid_eight_times_finer():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels = rng.random(rng.integers(1, 9, 2)) < 0.5
        rows, columns = (np.sort(rng.choice(np.arange(-20, 90), 6, replace=False)) for _ in "rc")
        fine = np.zeros((110, 110))
        fine[20 : 20 + 8 * pixels.shape[0], 20 : 20 + 8 * pixels.shape[1]] = np.kron(
            pixels, np.ones((8, 8))
        )
        expected = [
            [fine[20 + a : 20 + b, 20 + c : 20 + d].mean() for c, d in itertools.pairwise(columns)]
            for a, b in itertools.pairwise(rows)
        ]
        np.testing.assert_allclose(coverage(pixels, rows / 8, columns / 8), expected, atol=1e-12)


def test_a_mask_scaled_by_a_whole_number_repeats_its_pixels():
    mask = crop_mask(np.random.default_rng(0).random((9, 7)) < 0.4)
    window = resample_mask(mask, scale=(3, 2), corner=(4, 3), size=(20, 9))
    expected = np.kron(paste_mask(mask, (9, 7)), np.ones((3, 2), bool))[4:24, 3:12]
    np.testing.assert_array_equal(paste_mask(window, (20, 9)), expected)
    assert resample_mask(mask, scale=(1, 1), corner=(9, 0), size=(5, 5)).area == 0
