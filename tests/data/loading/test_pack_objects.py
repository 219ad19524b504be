"""Packing makes arrays of fixed shapes and pads images to buckets."""

import numpy as np
import pytest

from segjax.coco.masks import paste_mask
from segjax.data.augmentation.instance import ResizeShortSide, keep_objects
from segjax.data.augmentation.semantic import Normalize
from segjax.data.loading.pack_objects import PackObjects, box_frame_mask, bucket_of
from tests.data.discs import SIZE, frozen, iou, make_example

NORMALIZE = Normalize((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))


def test_a_box_frame_mask_pasted_back_is_the_mask():
    example = make_example()
    boxes = example["boxes"] + np.float32([-0.4, 0.3, 0.7, 0.2])
    for mask, box, area in zip(example["masks"], boxes, example["areas"], strict=True):
        framed = box_frame_mask(mask, box, 112)
        rows, columns = (np.arange(side) + 0.5 for side in SIZE)
        i, j = (
            np.floor((centres - low) / (high - low) * 112).astype(int)
            for centres, low, high in ((rows, box[1], box[3]), (columns, box[0], box[2]))
        )
        padded = np.pad(framed, 1)[np.clip(i + 1, 0, 113)[:, None], np.clip(j + 1, 0, 113)]
        assert iou(padded > 127, paste_mask(mask, SIZE)) > 0.95
        # The box leaves out 0.3 of the mask's first row.
        extent = (box[2] - box[0]) * (box[3] - box[1])
        expected = area - 0.3 * mask.pixels[0].sum()
        assert abs(framed.mean() / 255 * extent - expected) < 0.005 * area


def test_packed_arrays_hold_what_the_example_holds_and_zeros_elsewhere():
    example = make_example()
    example["crowd"][1] = True
    pack = PackObjects(((96, 128), (128, 96)), max_objects=6, normalize=NORMALIZE)
    packed = pack(frozen(example), np.random.default_rng(0))
    kept = keep_objects(example, ~example["crowd"])
    normalized = NORMALIZE(example, None)["image"]
    np.testing.assert_array_equal(packed["image"][:90, :120], normalized)
    assert packed["image"].shape == (96, 128, 3)
    assert not packed["image"][90:].any()
    assert not packed["image"][:, 120:].any()
    np.testing.assert_array_equal(packed["size"], SIZE)
    np.testing.assert_array_equal(packed["boxes"][:3], kept["boxes"])
    np.testing.assert_array_equal(packed["classes"], [2, 2, 2, 0, 0, 0])
    assert packed["masks"].shape == (6, 112, 112)
    assert not packed["masks"][3:].any()
    assert not packed["boxes"][3:].any()
    assert packed["dropped"] == 0
    dtypes = {"image": np.float32, "size": np.int32, "boxes": np.float32, "classes": np.int32}
    dtypes |= {"masks": np.uint8, "dropped": np.int32}
    assert {key: packed[key].dtype for key in packed if key != "id"} == dtypes


def test_flags_of_masks_stay_with_their_objects_and_annotated_entries_are_left_out():
    example = make_example()
    count = len(example["masks"])
    example["crowd"][1] = True
    example["has_mask"] = np.arange(count) != 2
    example["annotated_boxes"] = np.zeros((count, 4))
    example["annotated_areas"] = np.zeros(count)
    pack = PackObjects((SIZE,), max_objects=6, normalize=NORMALIZE, mask_size=28)
    packed = pack(frozen(example), np.random.default_rng(0))
    expected = np.zeros(6, bool)
    expected[: count - 1] = [place != 2 for place in range(count) if place != 1]
    np.testing.assert_array_equal(packed["has_mask"], expected)
    assert packed["has_mask"].dtype == bool
    assert not packed.keys() & {"annotated_boxes", "annotated_areas"}
    del example["has_mask"]
    assert "has_mask" not in pack(frozen(example), np.random.default_rng(0))


def test_too_many_objects_leave_the_largest_in_their_order_and_a_count_of_the_rest():
    pack = PackObjects((SIZE,), max_objects=2, normalize=NORMALIZE, mask_size=28)
    example = make_example()
    packed = pack(example, np.random.default_rng(0))
    assert packed["dropped"] == 2
    np.testing.assert_array_equal(packed["boxes"], example["boxes"][:2])
    assert packed["masks"].shape == (2, 28, 28)
    example["classes"][:] = [1, 2, 3, 4]
    packed = pack(keep_objects(example, np.array([2, 1, 3, 0])), np.random.default_rng(0))
    np.testing.assert_array_equal(packed["classes"], [2, 1])


def test_a_grey_image_without_objects_is_packed_with_three_equal_channels():
    example = keep_objects(make_example(), np.zeros(4, bool))
    example["image"] = example["image"][..., :1]
    pack = PackObjects((SIZE,), max_objects=3, normalize=Normalize(10.0, 5.0))
    packed = pack(example, np.random.default_rng(0))
    expected = (np.repeat(example["image"], 3, axis=2).astype(np.float32) - 10) / 5
    np.testing.assert_array_equal(packed["image"], expected)
    assert not any(packed[key].any() for key in ("boxes", "classes", "masks", "dropped"))


def test_an_image_goes_to_the_bucket_of_its_orientation():
    buckets = ((832, 1344), (1344, 832))
    assert bucket_of((800, 1333), buckets, portrait=False) == (832, 1344)
    assert bucket_of((820, 640), buckets, portrait=True) == (1344, 832)  # it fits into both
    assert bucket_of((640, 640), buckets, portrait=False) == (832, 1344)
    assert bucket_of((90, 60), ((96, 96),), portrait=True) == (96, 96)
    with pytest.raises(ValueError, match="is 800 × 1400 and does not fit into its bucket of 832"):
        bucket_of((800, 1400), buckets, portrait=False)


def test_an_image_that_rounding_makes_square_keeps_its_group():
    example = make_example()
    example["image"] = np.zeros((41, 40, 3), np.uint8)
    example = keep_objects(example, np.zeros(4, bool))
    resized = ResizeShortSide((10,), 20)(example, None)
    assert resized["image"].shape[:2] == (10, 10)
    pack = PackObjects(((16, 24), (24, 16)), max_objects=1, normalize=Normalize(0.0, 1.0))
    assert pack(resized, None)["image"].shape == (24, 16, 3)


def test_two_buckets_of_one_orientation_are_refused():
    with pytest.raises(ValueError, match=r"one higher than wide, got \(\(8, 16\), \(16, 16\)\)"):
        PackObjects(((8, 16), (16, 16)), max_objects=1, normalize=Normalize(0.0, 1.0))


def test_a_box_without_extent_is_refused():
    rng, example = np.random.default_rng(0), make_example()
    example["boxes"][0] = [5, 5, 5, 9]
    with pytest.raises(ValueError, match=r"the box \[5.0, 5.0, 5.0, 9.0\] has no width"):
        PackObjects((SIZE,), max_objects=6, normalize=NORMALIZE)(example, rng)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackObjects((), max_objects=1, normalize=NORMALIZE), "buckets must be"),
        (lambda: PackObjects((SIZE,), max_objects=0, normalize=NORMALIZE), "max_objects must be"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
