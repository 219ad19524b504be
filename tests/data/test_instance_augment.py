"""Image, boxes and masks move together, compared with masks of whole images."""

import itertools

import cv2
import numpy as np
import pytest

from segjax.data.augment import Normalize
from segjax.data.instance_augment import (
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
    keep_objects,
    resize_image,
    resized_size,
)
from segjax.data.instance_masks import (
    InstancesToObjects,
    coverage,
    crop_mask,
    masks_from_instances,
    paste_mask,
    resample_mask,
    tight_boxes,
)
from segjax.data.pack_objects import PackObjects, box_frame_mask, bucket_of

SIZE = (90, 120)
NORMALIZE = Normalize((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))
DISCS = {
    3: (30, 40, 18),
    7: (60, 90, 22),
    8: (70, 30, 12),
    1000: (2, 100, 10),
}  # row, column, radius


def draw(scale=1.0, size=SIZE):
    """Discs in a map of instances, drawn at a scale."""
    rows, columns = (np.arange(side) + 0.5 for side in size)
    instances = np.zeros(size, np.int32)
    for number, (row, column, radius) in DISCS.items():
        distance = np.hypot(rows[:, None] - scale * row, columns - scale * column)
        instances[distance < scale * radius] = number
    return instances


def make_example(seed=0):
    """The discs, white on black in the image, as objects of class 2."""
    instances = draw()
    image = np.repeat(np.uint8(255 * (instances > 0))[..., None], 3, axis=2)
    labels = np.where(instances > 0, 2, 0).astype(np.uint8)
    example = {"id": "discs", "image": image, "labels": labels, "instances": instances}
    return InstancesToObjects()(example, np.random.default_rng(seed))


def whole(example):
    size = example["image"].shape[:2]
    return [paste_mask(mask, size) for mask in example["masks"]]


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def frozen(example):
    """The arrays of an example, unwritable."""
    for value in (example["image"], example["boxes"], *(m.pixels for m in example["masks"])):
        value.flags.writeable = False
    return example


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


@pytest.mark.parametrize(
    ("size", "short_side", "nearest", "down"),
    [
        ((480, 640), 800, (800, 1067), (800, 1066)),
        ((640, 480), 800, (1067, 800), (1066, 800)),
        ((300, 1000), 800, (400, 1333), (399, 1333)),
        ((500, 500), 800, (800, 800), (800, 800)),
        ((1, 5000), 800, (1, 1333), (1, 1333)),
    ],
)
def test_new_sizes_are_those_of_detectron2_and_of_torchvision(size, short_side, nearest, down):
    assert resized_size(size, short_side, 1333) == nearest
    assert resized_size(size, short_side, 1333, rounding="down") == down


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_antialiasing_averages_what_is_made_smaller_and_only_that(dtype, channels):
    board = np.indices((40, 40)).sum(axis=0) % 2 * 200
    image = np.repeat(board[..., None], channels, axis=2).astype(dtype)
    small = resize_image(image, (7, 9))
    assert (small.shape, small.dtype) == ((7, 9, channels), dtype)
    assert np.abs(small[1:-1, 1:-1] - 100.0).max() < 30
    plain = resize_image(image, (8, 8), antialias=False)
    np.testing.assert_array_equal(plain[..., 0], cv2.resize(image[..., 0], (8, 8)))
    enlarged = resize_image(image, (80, 50))
    np.testing.assert_array_equal(enlarged, resize_image(image, (80, 50), antialias=False))
    assert resize_image(image, (40, 40)) is image


@pytest.mark.parametrize("short_side", [45, 63, 90, 150, 271])
def test_resizing_moves_boxes_and_masks_with_the_picture(short_side):
    example = ResizeShortSide((short_side,), 1000)(frozen(make_example()), np.random.default_rng(0))
    size = example["image"].shape[:2]
    assert min(size) == short_side
    expected = masks_from_instances(draw(short_side / SIZE[0], size))[1]
    painted = np.zeros(size, bool)
    for mask, box, other in zip(whole(example), example["boxes"], expected, strict=True):
        assert iou(mask, paste_mask(other, size)) > 0.9
        assert np.abs(box - other.box).max() < 1 + short_side / SIZE[0]
        painted |= mask
    assert iou(painted, example["image"][..., 0] > 127) > 0.97


def test_an_image_alone_is_resized_to_a_single_length_without_a_generator():
    resize, example = ResizeShortSide((63,), 1000), make_example()
    alone = resize({"image": example["image"]}, None)
    np.testing.assert_array_equal(alone["image"], resize(example, None)["image"])


def test_short_sides_are_drawn_evenly():
    transform, example = ResizeShortSide((40, 50), 1000), make_example()
    rng = np.random.default_rng(0)
    sides = [min(transform(example, rng)["image"].shape[:2]) for _ in range(40)]
    assert 10 < sides.count(40) < 30
    assert sides.count(40) + sides.count(50) == 40


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_a_flip_mirrors_everything_and_happens_in_half_of_the_cases(horizontal, vertical):
    flip = RandomFlip(horizontal=horizontal, vertical=vertical)
    example, rng, seen = frozen(make_example()), np.random.default_rng(0), []
    example["boxes"] = example["boxes"] + np.float32(0.25)
    for _ in range(40):
        flipped = flip(example, rng)
        turned = next(
            turn
            for turn in [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            if np.array_equal(flipped["image"], example["image"][:: turn[0], :: turn[1]])
        )
        seen.append(turned)
        for mask, before in zip(whole(flipped), whole(example), strict=True):
            np.testing.assert_array_equal(mask, before[:: turned[0], :: turned[1]])
        inset = flipped["boxes"] - tight_boxes(flipped["masks"])
        sign = np.tile(turned[::-1], 2)
        np.testing.assert_allclose(inset, np.broadcast_to(0.25 * sign, inset.shape))
    possible = {(v, h) for v in (1, -1)[: 1 + vertical] for h in (1, -1)[: 1 + horizontal]}
    assert set(seen) == possible
    assert all(seen.count(turn) > 40 / len(possible) / 2 for turn in possible)


def test_a_plain_crop_is_a_window_of_everything_with_boxes_of_what_is_left():
    example, rng = frozen(make_example()), np.random.default_rng(1)
    numbered = np.arange(np.prod(SIZE), dtype=np.uint16).reshape(*SIZE, 1)
    example["image"] = numbered
    for _ in range(20):
        crop = RandomCrop((40, 50), min_area=30)(example, rng)
        top, left = np.divmod(int(crop["image"][0, 0, 0]), SIZE[1])
        window = np.s_[top : top + 40, left : left + 50]
        np.testing.assert_array_equal(crop["image"], numbered[window])
        expected = [mask[window] for mask in whole(example) if mask[window].sum() >= 30]
        np.testing.assert_array_equal(np.array(whole(crop)).reshape(-1, 40, 50), expected)
        np.testing.assert_array_equal(crop["boxes"], tight_boxes(crop["masks"]))
        assert len(crop["classes"]) == len(crop["areas"]) == len(crop["crowd"]) == len(expected)


@pytest.mark.parametrize(
    "transform",
    [LargeScaleJitter((64, 64)), RandomCrop((64, 100), scale=(0.3, 2.5), fill=128.0)],
)
def test_a_jittered_picture_keeps_its_masks_on_its_objects(transform):
    example, rng, filled = frozen(make_example()), np.random.default_rng(2), 0
    for _ in range(30):
        moved = transform(example, rng)
        assert moved["image"].shape[:2] == transform.size
        filled += (moved["image"] == 128).all(axis=2).any()
        np.testing.assert_array_equal(moved["boxes"], tight_boxes(moved["masks"]))
        assert all(mask.area for mask in moved["masks"])
        painted = np.any([np.zeros(transform.size, bool), *whole(moved)], axis=0)
        bright = moved["image"][..., 0] > 128
        if bright.sum() > 200:
            assert iou(painted, bright) > 0.9
    assert 5 < filled < 30


def test_large_scale_jitter_draws_scales_over_the_whole_range():
    example, rng = make_example(), np.random.default_rng(0)
    example["image"] = np.zeros_like(example["image"])
    jitter = LargeScaleJitter((60, 60), scale=(0.2, 1.0))
    pictures = [jitter(example, rng)["image"][..., 0] == 0 for _ in range(60)]
    widths = np.array([picture.any(axis=0).sum() for picture in pictures])
    heights = np.array([picture.any(axis=1).sum() for picture in pictures])
    assert (np.abs(heights - widths * 0.75) < 0.9).all()  # of 90 × 120, both rounded
    assert widths.min() < 18
    assert widths.max() > 54
    assert np.abs(widths.mean() - 36) < 5


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
        # Of the mask's area the box leaves out 0.3 of the first row.
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


def test_of_too_many_objects_the_largest_are_kept_in_their_order_and_the_rest_counted():
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


def test_examples_that_cannot_be_moved_whole_are_refused():
    rng, example = np.random.default_rng(0), make_example()
    for transform in (ResizeShortSide((50,), 100), RandomFlip(), RandomCrop((9, 9))):
        with pytest.raises(ValueError, match=r"there: \['labels'\]"):
            transform({**example, "labels": np.zeros(SIZE, np.uint8)}, rng)
        with pytest.raises(ValueError, match=r"missing: \['masks'\]"):
            transform({key: example[key] for key in example if key != "masks"}, rng)
    example["boxes"][0] = [5, 5, 5, 9]
    with pytest.raises(ValueError, match=r"the box \[5.0, 5.0, 5.0, 9.0\] has no width"):
        PackObjects((SIZE,), max_objects=6, normalize=NORMALIZE)(example, rng)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeShortSide((), 9), "short_sides must be"),
        (lambda: ResizeShortSide((9,), 8), "max_size 8 is less than 9"),
        (lambda: ResizeShortSide((9,), 9, rounding="up"), "rounding must be"),
        (lambda: LargeScaleJitter((9, 0)), "size must be positive"),
        (lambda: LargeScaleJitter((9, 9), scale=(0, 1)), "scale must be"),
        (lambda: RandomCrop((9, 9), min_area=0), "min_area must be"),
        (lambda: PackObjects((), max_objects=1, normalize=NORMALIZE), "buckets must be"),
        (lambda: PackObjects((SIZE,), max_objects=0, normalize=NORMALIZE), "max_objects must be"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
