"""Image, boxes and masks move together, as whole-image masks do."""

import cv2
import numpy as np
import pytest

from segjax.coco.masks import paste_mask
from segjax.data.augmentation.instance import (
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
    resize_image,
    resized_size,
)
from segjax.data.instance_masks import masks_from_instances, tight_boxes
from tests.data.discs import SIZE, draw, frozen, iou, make_example, whole


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
    assert (np.abs(heights - widths * 0.75) < 0.9).all()  # the sides of 90 × 120 are rounded
    assert widths.min() < 18
    assert widths.max() > 54
    assert np.abs(widths.mean() - 36) < 5


def test_examples_that_cannot_be_moved_whole_are_refused():
    rng, example = np.random.default_rng(0), make_example()
    for transform in (ResizeShortSide((50,), 100), RandomFlip(), RandomCrop((9, 9))):
        with pytest.raises(ValueError, match=r"missing: \['masks'\]"):
            transform({key: example[key] for key in example if key != "masks"}, rng)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResizeShortSide((), 9), "short_sides must be"),
        (lambda: ResizeShortSide((9,), 8), "max_size 8 is less than 9"),
        (lambda: ResizeShortSide((9,), 9, rounding="up"), "rounding must be"),
        (lambda: LargeScaleJitter((9, 0)), "size must be positive"),
        (lambda: LargeScaleJitter((9, 9), scale=(0, 1)), "scale must be"),
        (lambda: RandomCrop((9, 9), min_area=0), "min_area must be"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
