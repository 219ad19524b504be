"""Maps that a source adds move with the image: integers like labels, floats like the image."""

import numpy as np
import pytest

from segjax.data.augmentation.instance import (
    LargeScaleJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
)
from segjax.data.augmentation.photometric import GreyValues
from segjax.data.augmentation.semantic import CenterCrop, CropTruth, Normalize, Standardize, Warp
from segjax.data.loading.pack_objects import PackObjects
from tests.data.augmentation.test_semantic import EVERYTHING, make_example
from tests.data.discs import SIZE, draw, frozen, whole
from tests.data.discs import make_example as make_objects

PACK = PackObjects(((96, 128), (128, 96)), max_objects=4, normalize=Normalize(0.0, 1.0))
SEMANTIC = [
    Warp((32, 33), **EVERYTHING),
    Warp((64, 60), **EVERYTHING, border="constant", interpolation="bicubic"),
    Warp((20, 20)),
    CenterCrop((11, 20)),
    CropTruth((12, 14)),
    Standardize(),
    GreyValues(gamma=0.5, noise=0.1),
]
OBJECTS = [
    ResizeShortSide((45,), 1000),
    ResizeShortSide((63, 90, 200), 1000, antialias=False),
    RandomFlip(vertical=True),
    LargeScaleJitter((64, 64), fill=0.0),
    RandomCrop((64, 100), scale=(0.3, 2.5)),
]
TYPES = [bool, np.int8, np.uint16, np.int32, np.uint32, np.int64]


@pytest.mark.parametrize("transform", SEMANTIC, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_map_that_equals_the_labels_still_does_after_each_transform(transform, dtype):
    example = make_example(channels=3, dtype=np.float32)
    example["labels"] = example["second_observer"]  # 0 and 1
    example["mine"] = example["labels"].astype(dtype)
    example["several"] = np.repeat(example["mine"][..., None, None], 2, axis=2)
    for seed in range(5):
        moved = transform(example, np.random.default_rng(seed))
        # Outside the image labels are 255 and other maps 0.
        expected = np.where(moved["labels"] == 255, 0, moved["labels"])
        np.testing.assert_array_equal(moved["mine"], expected)
        np.testing.assert_array_equal(moved["several"], np.stack([moved["mine"]] * 2, 2)[..., None])
        assert (moved["mine"].dtype.kind == "b") == (dtype is bool)


@pytest.mark.parametrize("border", ["mirror", "constant"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_map_of_floats_is_interpolated_as_the_image_is(border, dtype):
    example = make_example(channels=1, dtype=np.float32)
    plane = example["image"][..., 0].astype(dtype)
    example |= {"image": plane[..., None].astype(np.float32), "mine": plane}
    moved = Warp((33, 37), **EVERYTHING, border=border)(example, np.random.default_rng(5))
    np.testing.assert_allclose(moved["mine"], moved["image"][..., 0], rtol=1e-6, atol=1e-6)
    assert len(np.unique(moved["mine"])) > 900


def test_interpolated_maps_stay_within_their_range():
    example = make_example(dtype=np.float32)
    example["mine"] = np.float32(example["instances"] == 3)
    warp = Warp((64, 64), **EVERYTHING, interpolation="bicubic")
    moved = [warp(example, np.random.default_rng(seed)) for seed in range(5)]
    assert any(each["image"].max() > 2 for each in moved)
    assert {each["mine"].min() for each in moved} == {0}
    assert {each["mine"].max() for each in moved} == {1}


def test_a_map_of_many_channels_moves_as_each_of_them_does():
    example = make_example()
    planes = np.random.default_rng(0).random((40, 50, 150)).astype(np.float32)
    warp = Warp((20, 20), **EVERYTHING)
    moved = warp({**example, "mine": planes}, np.random.default_rng(1))["mine"]
    assert moved.shape == (20, 20, 150)
    for channel in range(150):
        one = warp({**example, "mine": planes[..., channel]}, np.random.default_rng(1))["mine"]
        np.testing.assert_array_equal(moved[..., channel], one)


def test_the_truth_of_a_smaller_output_has_its_maps_but_not_the_image():
    example = {**make_example(), "mine": np.arange(2000).reshape(40, 50)}
    cropped = CropTruth((12, 14))(example, np.random.default_rng(0))
    assert cropped["image"].shape == (40, 50, 1)
    np.testing.assert_array_equal(cropped["mine"], example["mine"][14:26, 18:32])
    assert "field_of_view" not in cropped


def test_weights_of_the_user_stay_on_their_labels():
    """A weight belongs to its label, so that weights are not interpolated."""
    example = make_example()
    example["weights"] = np.float32(1.5) + example["labels"]
    for border in ("mirror", "constant"):
        warp = Warp((64, 64), **EVERYTHING, border=border)
        moved = CropTruth((40, 40))(warp(example, rng := np.random.default_rng(2)), rng)
        expected = np.float32(1.5) + moved["labels"]
        outside = moved["weights"] == 0
        assert (border == "mirror") == (not outside.any())
        assert (moved["labels"][outside] == 255).all()
        np.testing.assert_array_equal(moved["weights"][~outside], expected[~outside])


@pytest.mark.parametrize("transform", OBJECTS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("dtype", TYPES)
def test_maps_move_with_objects_and_are_padded(transform, dtype):
    example = frozen(make_objects())
    example["labels"] = np.uint8(draw() > 0)
    example["mine"] = example["labels"].astype(dtype)
    example["soft"] = example["image"].astype(np.float32)
    image = {**example, "image": example["soft"]}
    for seed in range(5):
        moved, other = (transform(given, np.random.default_rng(seed)) for given in (example, image))
        np.testing.assert_array_equal(moved["soft"], other["image"])
        inside = np.where(moved["labels"] == 255, 0, moved["labels"])
        np.testing.assert_array_equal(moved["mine"], inside)
        painted = np.any([np.zeros(inside.shape, bool), *whole(moved)], axis=0)
        agreement = (painted == inside).mean()
        assert agreement == 1 if isinstance(transform, RandomFlip) else agreement > 0.97
        height, width = inside.shape
        if min(height, width) > 96 or max(height, width) > 128:
            continue
        packed = PACK(moved, np.random.default_rng(0))
        for key, outside in (("mine", 0), ("soft", 0), ("labels", 255)):
            assert packed[key].shape[:2] == packed["image"].shape[:2]
            np.testing.assert_array_equal(packed[key][:height, :width], moved[key])
            assert (packed[key][height:] == outside).all()
            assert (packed[key][:, width:] == outside).all()


def test_a_plain_crop_cuts_maps_where_it_cuts_the_image():
    example, rng = frozen(make_objects()), np.random.default_rng(1)
    number = np.arange(np.prod(SIZE), dtype=np.int32).reshape(SIZE)
    example |= {"image": np.uint16(number)[..., None], "mine": number, "soft": np.float32(number)}
    for _ in range(10):
        crop = RandomCrop((40, 50))(example, rng)
        np.testing.assert_array_equal(crop["mine"], crop["image"][..., 0])
        np.testing.assert_array_equal(crop["soft"], crop["mine"])


@pytest.mark.parametrize("transform", [*SEMANTIC, *OBJECTS, PACK], ids=lambda t: type(t).__name__)
def test_numbers_and_vectors_are_passed_on(transform):
    extra = {"age": 7.5, "camera": np.arange(9.0), "place": "here"}
    example = make_objects() if transform in (*OBJECTS, PACK) else make_example()
    moved = transform({**example, **extra}, np.random.default_rng(0))
    assert {key: moved[key] for key in extra} == extra


@pytest.mark.parametrize("transform", [Warp((5, 5)), CenterCrop((5, 5)), *OBJECTS, PACK])
def test_an_array_that_does_not_lie_on_the_image_is_refused_by_name(transform):
    example = make_objects() if transform in (*OBJECTS, PACK) else make_example()
    example["coarse"] = example["image"][::2, ::2, 0]
    with pytest.raises(ValueError, match=r"'coarse' is .* but the image .* store any other as a v"):
        transform(example, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image: image[..., 0],
            r"'image' is uint8 of shape \(40, 50\); expected uint8, uint",
        ),
        (
            lambda image: image.astype(int),
            r"'image' is int64 of shape \(40, 50, 1\)",
        ),
    ],
)
def test_an_image_without_channels_or_of_another_type_is_refused(change, message):
    example = make_example()
    example["image"] = change(example["image"])
    with pytest.raises(ValueError, match=message):
        Warp((5, 5))(example, np.random.default_rng(0))


def test_objects_are_not_moved_as_label_maps():
    with pytest.raises(ValueError, match=r"the example has \['boxes', 'classes', 'masks'"):
        Warp((5, 5))(make_objects(), np.random.default_rng(0))
