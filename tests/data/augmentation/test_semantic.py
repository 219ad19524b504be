"""Augmentation: image and truth move together, exactly where that can be exact."""

import numpy as np
import pytest
from scipy import ndimage

from segjax.data.augmentation.elastic import cubic_weights, elastic_displacement
from segjax.data.augmentation.semantic import CenterCrop, Normalize, Standardize, Warp

EVERYTHING = {
    "rotation": 180.0,
    "scale": (0.7, 1.4),
    "flip_horizontal": True,
    "flip_vertical": True,
    "elastic_sigma": 3.0,
}
OVER_THE_IMAGE = ("labels", "second_observer", "instances", "weights", "field_of_view")


def make_example(height=40, width=50, channels=1, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    limit = 2 if dtype == np.float32 else np.iinfo(dtype).max
    example = {
        "id": "some id",
        "image": (rng.random((height, width, channels)) * limit).astype(dtype),
        "labels": rng.choice(np.array([0, 1, 255], np.uint8), (height, width)),
        "second_observer": rng.choice(np.array([0, 1], np.uint8), (height, width)),
        "instances": rng.choice(np.array([0, 3, 2**30 + 1], np.int32), (height, width)),
        "weights": rng.random((height, width), np.float32),
        "field_of_view": rng.random((height, width)) > 0.5,
    }
    for value in example.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return example


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert getattr(a[key], "dtype", None) == getattr(b[key], "dtype", None)


def window(example, top, left, height, width):
    over = {key: example[key][top : top + height, left : left + width] for key in OVER_THE_IMAGE}
    return {
        **example,
        **over,
        "image": example["image"][top : top + height, left : left + width],
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_warp_with_all_options_off_is_a_plain_crop(dtype, channels, interpolation):
    example = make_example(channels=channels, dtype=dtype)
    cropped = Warp((16, 21), interpolation=interpolation)(example, np.random.default_rng(1))
    places = [
        (top, left)
        for top in range(25)
        for left in range(30)
        if np.array_equal(example["labels"][top : top + 16, left : left + 21], cropped["labels"])
    ]
    assert len(places) == 1
    assert_same(cropped, window(example, *places[0], 16, 21))


def test_warp_to_the_size_of_the_image_is_the_identity():
    example = make_example()
    assert_same(Warp((40, 50))(example, np.random.default_rng(0)), example)


def test_crops_fall_on_every_place_and_never_outside():
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(200):
        rows, columns = Warp((3, 4)).sampling_map((5, 5), rng)
        corners.add((int(rows[0, 0]), int(columns[0, 0])))
    assert corners == {(top, left) for top in range(3) for left in range(2)}


def test_warped_image_is_interpolated_at_the_sampling_map():
    example = make_example(channels=3, dtype=np.float32)
    warp = Warp((33, 37), **EVERYTHING)
    rows, columns = warp.sampling_map((40, 50), np.random.default_rng(5))
    warped = warp(example, np.random.default_rng(5))
    for channel in range(3):
        plane = example["image"][..., channel].astype(np.float64)
        expected = ndimage.map_coordinates(plane, [rows, columns], order=1, mode="mirror")
        np.testing.assert_allclose(warped["image"][..., channel], expected, atol=1e-4)
    indices = np.rint([rows, columns])
    expected = ndimage.map_coordinates(example["instances"], indices, order=0, mode="mirror")
    np.testing.assert_array_equal(warped["instances"], expected)


@pytest.mark.parametrize("border", ["mirror", "constant"])
def test_image_and_truth_move_together(border):
    blocks = np.kron(np.random.default_rng(0).integers(0, 4, (6, 6)), np.ones((20, 20))).astype(int)
    example = {
        "image": np.float32(blocks)[..., None],
        "labels": np.uint8(blocks),
        "instances": np.int32(blocks),
    }
    warp = Warp((100, 110), **EVERYTHING, border=border, fill=255.0)
    warped = warp(example, np.random.default_rng(3))
    labels = warped["labels"].astype(int)
    np.testing.assert_array_equal(np.where(labels == 255, 0, labels), warped["instances"])
    # Interpolation changes nothing away from the seams of the blocks. 2 pixels of the result are at
    # least 1 of the source at this scale.
    flat = ndimage.maximum_filter(labels, 5) == ndimage.minimum_filter(labels, 5)
    assert flat.mean() > 0.4
    np.testing.assert_allclose(warped["image"][flat, 0], labels[flat], atol=1e-4)


def test_labels_and_ids_are_never_mixed():
    example = make_example()
    rng = np.random.default_rng(0)
    for border in ("mirror", "constant"):
        for _ in range(5):
            warped = Warp((64, 64), **EVERYTHING, border=border)(example, rng)
            assert set(np.unique(warped["labels"])) == {0, 1, 255}
            assert set(np.unique(warped["instances"])) == {0, 3, 2**30 + 1}
            assert set(np.unique(warped["weights"])) <= {0, *np.unique(example["weights"])}
            assert warped["field_of_view"].dtype == bool


def test_the_same_generator_gives_the_same_bits_and_another_others():
    example = make_example()
    warp = Warp((32, 32), **EVERYTHING, cat_max_ratio=0.5)

    def augment(seed):
        return warp(example, np.random.default_rng(seed))

    assert_same(augment((0, 1, 2)), augment((0, 1, 2)))
    assert not np.array_equal(augment((0, 1, 2))["image"], augment((0, 1, 3))["image"])
    assert not np.array_equal(augment((0, 1, 2))["labels"], augment((0, 1, 3))["labels"])


def test_transforms_do_not_write_into_their_input():
    example = make_example()
    before = {key: np.copy(value) for key, value in example.items()}
    for transform in (
        Warp((30, 30), **EVERYTHING),
        Normalize(10.0, 2.0),
        Standardize(),
        CenterCrop((10, 10)),
    ):
        result = transform(example, np.random.default_rng(0))
        assert result is not example
        assert_same({key: np.asarray(value) for key, value in example.items()}, before)


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_happen_in_half_of_the_cases_and_undo_themselves(axis):
    example = make_example()
    flip = Warp((40, 50), flip_vertical=axis == 0, flip_horizontal=axis == 1)
    flipped = 0
    for seed in range(40):
        once = flip(example, np.random.default_rng(seed))
        assert_same(flip(once, np.random.default_rng(seed)), example)
        if not np.array_equal(once["labels"], example["labels"]):
            np.testing.assert_array_equal(once["image"], np.flip(example["image"], axis))
            flipped += 1
    assert 10 < flipped < 30


def test_rotation_and_scale_are_similarities_within_their_limits():
    angles, scales = [], []
    warp = Warp((20, 30), rotation=30.0, scale=(0.5, 2.0))
    for seed in range(300):
        rows, columns = warp.sampling_map((100, 100), np.random.default_rng(seed))
        right = np.array([rows[0, 1] - rows[0, 0], columns[0, 1] - columns[0, 0]])
        down = np.array([rows[1, 0] - rows[0, 0], columns[1, 0] - columns[0, 0]])
        np.testing.assert_allclose([down[0], -down[1]], [right[1], right[0]], atol=1e-4)
        scales.append(1 / np.hypot(*right))
        angles.append(np.rad2deg(np.arctan2(right[0], right[1])))
    assert 0.499 < min(scales) < 0.52
    assert 1.98 < max(scales) < 2.001
    assert -30.01 < min(angles) < -29
    assert 29 < max(angles) < 30.01


def test_scales_by_steps_are_drawn_from_all_steps_alike():
    warp = Warp((20, 30), scale=(0.5, 2.0), scale_step=0.25)
    scales = []
    for seed in range(700):
        rows, _ = warp.sampling_map((100, 100), np.random.default_rng(seed))
        scales.append(1 / (rows[1, 0] - rows[0, 0]))
    steps, counts = np.unique(np.round(scales, 4), return_counts=True)
    assert steps.tolist() == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert counts.min() > 70
    rows, _ = Warp((5, 5), scale_step=0.25).sampling_map((5, 5), np.random.default_rng(0))
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_scale_above_one_makes_things_larger():
    labels = np.zeros((60, 60), np.uint8)
    labels[25:35, 25:35] = 1
    example = {"image": labels[..., None], "labels": labels}
    warped = Warp((80, 80), scale=(2.0, 2.0), border="constant")(example, np.random.default_rng(0))
    assert (warped["labels"] == 1).sum() == 400


def test_mirror_border_continues_with_the_pixels_beside_the_edge():
    example = make_example(height=6, width=8)
    warped = Warp((16, 20))(example, np.random.default_rng(2))
    mirrored = np.pad(example["image"], ((10, 10), (12, 12), (0, 0)), mode="reflect")
    matches = [
        (top, left)
        for top in range(11)
        for left in range(13)
        if np.array_equal(mirrored[top : top + 16, left : left + 20], warped["image"])
    ]
    assert matches
    top, left = matches[0]
    labels = np.pad(example["labels"], ((10, 10), (12, 12)), mode="reflect")
    np.testing.assert_array_equal(labels[top : top + 16, left : left + 20], warped["labels"])


def test_constant_border_is_fill_in_the_image_and_nothing_in_the_truth():
    example = make_example(height=6, width=8, channels=3)
    warp = Warp((16, 20), border="constant", fill=(10.0, 20.0, 30.0))
    warped = warp({**example, "labels": np.ones((6, 8), np.uint8)}, np.random.default_rng(2))
    outside = warped["labels"] == 255
    assert outside.sum() == 16 * 20 - 6 * 8
    np.testing.assert_array_equal(np.unique(warped["image"][outside], axis=0), [[10, 20, 30]])
    np.testing.assert_array_equal(warped["image"][~outside], example["image"].reshape(-1, 3))
    assert (warped["second_observer"][outside] == 255).all()
    for key in ("instances", "weights", "field_of_view"):
        assert not warped[key][outside].any()


def test_a_picture_smaller_than_the_window_lies_at_every_place_in_it():
    labels = np.ones((2, 3), np.uint8)
    warp, rng, places = Warp((4, 4), border="constant"), np.random.default_rng(0), set()
    for _ in range(100):
        inside = warp({"image": labels[..., None], "labels": labels}, rng)["labels"] == 1
        assert inside.sum() == 6
        places.add(tuple(np.argwhere(inside)[0].tolist()))
    assert places == {(top, left) for top in range(3) for left in range(2)}


def dominated(labels, ratio):
    """Whether one class has at least `ratio` of the labelled pixels, or none is labelled."""
    classes, counts = np.unique(labels[labels != 255], return_counts=True)
    return len(classes) < 2 or counts.max() >= ratio * counts.sum()


def test_windows_with_too_much_of_one_class_are_moved_and_only_moved():
    labels = np.zeros((90, 120), np.uint8)
    labels[20:60, 90:] = 1
    labels[:10] = 255
    picture = {"image": labels[..., None], "labels": labels}
    options = {"scale": (0.5, 2.0), "rotation": 20.0, "flip_horizontal": True}
    free, bound = (Warp((30, 30), **options, cat_max_ratio=ratio) for ratio in (None, 0.75))
    before = after = 0
    for seed in range(60):
        drawn, kept = (warp(picture, np.random.default_rng(seed)) for warp in (free, bound))
        if not dominated(drawn["labels"], 0.75):
            assert_same(kept, drawn)
        before += dominated(drawn["labels"], 0.75)
        after += dominated(kept["labels"], 0.75)
        maps = [
            np.array(warp.sampling_map(labels.shape, np.random.default_rng(seed), labels=given))
            for warp, given in ((free, None), (bound, labels))
        ]
        moved = maps[1] - maps[0]  # by whole pixels, the same everywhere
        moves = np.rint(moved[:, :1, :1])
        np.testing.assert_allclose(moved, np.broadcast_to(moves, moved.shape), atol=1e-4)
    assert before > 40
    assert after < 15


def test_ignored_pixels_are_no_class_that_could_have_too_much():
    labels = np.full((40, 40), 255, np.uint8)
    labels[::7, ::2], labels[::7, 1::2] = 0, 1
    picture = {"image": labels[..., None], "labels": labels}
    for seed in range(5):
        drawn, kept = (
            Warp((20, 20), cat_max_ratio=ratio)(picture, np.random.default_rng(seed))
            for ratio in (None, 0.75)
        )
        assert_same(kept, drawn)


@pytest.mark.parametrize("value", [3, 255])
def test_a_picture_of_one_class_or_none_is_cut_after_ten_moves(value):
    labels = np.full((40, 40), value, np.uint8)
    picture = {"image": np.arange(1600, dtype=np.uint16).reshape(40, 40, 1), "labels": labels}
    drawn = Warp((9, 9), cat_max_ratio=0.75)(picture, rng := np.random.default_rng(0))
    top, left = np.argwhere(picture["image"][..., 0] == drawn["image"][0, 0, 0])[0]
    assert_same(drawn, {k: v[top : top + 9, left : left + 9] for k, v in picture.items()})
    once = np.random.default_rng(0)
    Warp((9, 9)).sampling_map((40, 40), once)
    places = [once.integers((0, 0), (31, 31), endpoint=True) for _ in range(10)]
    assert (top, left) == tuple(places[-1])
    assert rng.bit_generator.state == once.bit_generator.state


def rare_classes():
    """A picture with 1,950 pixels of class 0, 3 of class 7, 1 of class 9, and 46 ignored ones."""
    labels = np.zeros((40, 50), np.uint8)
    labels[0, 49], labels[39, :3], labels[20, 2:48] = 9, 7, 255
    return {"image": np.arange(2000, dtype=np.uint16).reshape(40, 50, 1), "labels": labels}


@pytest.mark.parametrize("size", [(9, 12), (64, 61)])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("border", ["mirror", "constant"])
def test_balanced_windows_centre_on_each_class_equally_often(size, options, border):
    picture, classes = rare_classes(), []
    warp = Warp(size, **options, border=border, class_balanced=1.0, cat_max_ratio=0.01)
    for seed in range(300):
        warped = warp(picture, np.random.default_rng(seed))
        classes.append(int(warped["labels"][size[0] // 2, size[1] // 2]))
    assert set(classes) == {0, 7, 9}
    assert np.bincount(classes)[[0, 7, 9]] == pytest.approx(100, abs=25)  # three deviations


def test_a_balanced_window_is_a_plain_crop_around_any_pixel_of_its_class():
    picture = rare_classes()
    warp, seen = Warp((5, 4), border="constant", fill=0, class_balanced=1.0), set()
    padded = {
        "image": np.pad(picture["image"], ((5, 5), (5, 5), (0, 0))),
        "labels": np.pad(picture["labels"], 5, constant_values=255),
    }
    for seed in range(200):
        cut = warp(picture, np.random.default_rng(seed))
        row, column = divmod(int(cut["image"][2, 2, 0]), 50)
        window = np.s_[row + 3 : row + 8, column + 3 : column + 7]
        assert_same(cut, {key: value[window] for key, value in padded.items()})
        seen.add((row, column))
    assert {(0, 49), (39, 0), (39, 1), (39, 2)} <= seen
    assert len(seen) > 50


def test_a_share_of_the_windows_is_balanced_and_the_others_are_those_without_it():
    labels, balanced = rare_classes()["labels"], 0
    off, some = (Warp((9, 9), **EVERYTHING, class_balanced=share) for share in (0.0, 0.3))
    for seed in range(300):
        rng = np.random.default_rng(seed)
        free = np.array(off.sampling_map((40, 50), rng, labels=labels))
        found = np.array(some.sampling_map((40, 50), np.random.default_rng(seed), labels=labels))
        if rng.random() < 0.3:
            moved = found - free  # the same everywhere
            np.testing.assert_allclose(
                moved, np.broadcast_to(moved[:, :1, :1], moved.shape), atol=1e-4
            )
            assert labels[tuple(np.rint(found[:, 4, 4]).astype(int))] != 255
            balanced += 1
        else:
            np.testing.assert_array_equal(found, free)
    assert balanced == pytest.approx(90, abs=24)  # three deviations


def test_without_balanced_windows_nothing_is_drawn_for_them():
    picture, rng, replayed = make_example(), np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(10):
        cropped = Warp((9, 8), class_balanced=0.0)(picture, rng)
        replayed.random()  # the scale
        top, left = replayed.integers((0, 0), (31, 42), endpoint=True)
        replayed.random(5)  # two unused, the angle, two flips
        assert_same(cropped, window(picture, top, left, 9, 8))
        assert rng.bit_generator.state == replayed.bit_generator.state


def test_a_picture_without_labels_is_cut_anywhere_when_its_classes_are_to_be_balanced():
    picture = {**make_example(), "labels": np.full((40, 50), 255, np.uint8)}
    for seed in range(5):
        plain, kept = (
            Warp((9, 9), **EVERYTHING, class_balanced=share)(picture, np.random.default_rng(seed))
            for share in (0.0, 1.0)
        )
        assert_same(plain, kept)


def test_displacements_at_the_nodes_have_the_standard_deviation_asked_for():
    rng = np.random.default_rng(0)
    at_nodes = [elastic_displacement((41, 61), rng, sigma=10.0)[:, ::20, ::30] for _ in range(300)]
    np.testing.assert_allclose(np.std(at_nodes, axis=0), 10.0, rtol=0.15)
    np.testing.assert_allclose(np.std(at_nodes), 10.0, rtol=0.03)
    np.testing.assert_allclose(np.mean(at_nodes), 0.0, atol=0.5)
    correlations = np.corrcoef(np.reshape(at_nodes, (300, -1)).T) - np.eye(18)
    assert np.abs(correlations).max() < 0.25


def test_cubic_interpolation_passes_through_the_nodes_and_reproduces_parabolas():
    weights = cubic_weights(81, 5)
    np.testing.assert_allclose(weights[::20], np.eye(5), atol=1e-6)
    nodes, pixels = np.linspace(-1, 1, 5), np.linspace(-1, 1, 81)
    for power in range(3):
        np.testing.assert_allclose(weights @ nodes**power, pixels**power, atol=1e-6)
    np.testing.assert_allclose(weights[30], [-1 / 16, 9 / 16, 9 / 16, -1 / 16, 0], atol=1e-6)


def test_elastic_deformation_leaves_a_window_in_place_on_average():
    warp = Warp((50, 50), elastic_sigma=4.0)
    rows = [warp.sampling_map((50, 50), np.random.default_rng(s))[0][25, 25] for s in range(300)]
    assert abs(np.mean(rows) - 25) < 1
    assert 3.5 < np.std(rows) < 4.5


def test_a_flat_image_survives_standardisation():
    example = {"image": np.full((4, 4, 1), 7, np.uint8)}
    np.testing.assert_array_equal(Standardize()(example, np.random.default_rng(0))["image"], 0)


def test_normalisation_by_channel_and_by_image():
    example = {"image": np.array([[[10, 20, 30], [30, 20, 10]]], np.uint8)}
    rng = np.random.default_rng(0)
    normalized = Normalize((10.0, 10.0, 20.0), (10.0, 5.0, 1.0))(example, rng)["image"]
    np.testing.assert_array_equal(normalized, np.float32([[[0, 2, 10], [2, 2, -10]]]))
    assert normalized.dtype == np.float32
    grey = {"image": np.array([[[10], [30]]], np.uint8)}
    normalized = Normalize((10.0, 10.0, 20.0), (10.0, 5.0, 1.0))(grey, rng)["image"]
    np.testing.assert_array_equal(normalized, np.float32([[[0, 0, -10], [2, 4, 10]]]))
    assert Normalize(10.0, 2.0)(grey, rng)["image"].shape == (1, 2, 1)
    bands = {"image": np.full((1, 1, 5), 30, np.uint8)}
    normalized = Normalize((10.0, 10.0, 20.0), (10.0, 5.0, 1.0))(bands, rng)["image"]
    np.testing.assert_array_equal(normalized, np.float32([[[2, 4, 10, 2, 4]]]))
    standardized = Standardize()(make_example(dtype=np.uint16), rng)["image"]
    assert standardized.dtype == np.float32
    np.testing.assert_allclose([standardized.mean(), standardized.std()], [0, 1], atol=1e-5)


def test_centre_crop_takes_the_middle():
    example = make_example(height=7, width=9)
    cropped = CenterCrop((4, 5))(example, np.random.default_rng(0))
    assert_same(cropped, window(example, 1, 2, 4, 5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warp((0, 5)), "size"),
        (lambda: Warp((5, 40000)), "32766"),
        (lambda: Warp((5, 5), scale=(2.0, 1.0)), r"scale.*\(2.0, 1.0\)"),
        (lambda: Warp((5, 5), scale=(0.0, 1.0)), "scale"),
        (lambda: Warp((5, 5), rotation=-1.0), "rotation.*-1"),
        (lambda: Warp((5, 5), border="reflect"), "'mirror' or 'constant', got 'reflect'"),
        (lambda: Warp((5, 5), interpolation="cubic"), "'bicubic', got 'cubic'"),
        (
            lambda: Warp((5, 5), scale=(0.5, 2.0), scale_step=0.4),
            r"scale_step .*\(0.5, 2.0\), got 0.4",
        ),
        (lambda: Warp((5, 5), scale_step=0.0), "scale_step .* got 0.0"),
        (lambda: Warp((5, 5), cat_max_ratio=1.5), "cat_max_ratio .* got 1.5"),
        (lambda: Warp((5, 5), class_balanced=1.5), r"class_balanced .* \[0, 1\].* got 1.5"),
        (lambda: Warp((5, 5), class_balanced=float("nan")), "class_balanced .* got nan"),
        (lambda: Normalize(0.0, (1.0, 0.0)), "std"),
        (lambda: cubic_weights(9, 2), "3 nodes"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "changes", "message"),
    [
        (Warp((5, 5)), {"boxes": np.zeros((3, 4))}, "'boxes'"),
        (Warp((5, 5)), {"labels": np.zeros((3, 4), np.uint8)}, r"'labels' is \(3, 4\)"),
        (Warp((5, 5)), {"image": np.zeros((1, 32767, 1), np.uint8)}, "1 × 32767"),
        (CenterCrop((41, 5)), {}, r"40 × 50, smaller than CenterCrop\(41, 5\)"),
    ],
)
def test_examples_that_do_not_fit_are_refused(transform, changes, message):
    with pytest.raises(ValueError, match=message):
        transform({**make_example(), **changes}, np.random.default_rng(0))
