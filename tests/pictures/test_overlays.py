import cv2
import numpy as np
import pytest

from segjax.pictures.canvas import fit, resize_nearest
from segjax.pictures.colors import ERROR_COLORS, color_map, instance_colors
from segjax.pictures.overlays import (
    errors,
    overlay,
    overlay_instances,
    panel,
    to_rgb,
    with_legend,
    write_png,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 30, 3)).astype(np.uint8)


def count(picture, color):
    return int((picture == np.array(color, np.uint8)).all(axis=-1).sum())


def contains(picture, part):
    """Whether a picture contains another one, pixel for pixel."""
    difference = cv2.matchTemplate(picture, part, cv2.TM_SQDIFF)
    row, column = np.unravel_index(difference.argmin(), difference.shape)
    window = picture[row : row + part.shape[0], column : column + part.shape[1]]
    return np.array_equal(window, part)


def test_to_rgb_leaves_uint8_as_it_is_and_repeats_grey(image):
    assert np.array_equal(to_rgb(image), image)
    grey = image[..., :1]
    for same in (grey, grey[..., 0]):
        assert np.array_equal(to_rgb(same), np.repeat(grey, 3, axis=2))


def test_to_rgb_scales_floats_within_0_and_1_by_255():
    image = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert to_rgb(image)[..., 0].tolist() == [[0, 128, 255]]


def test_to_rgb_uses_the_whole_range_for_16_bit_images_of_a_12_bit_camera():
    image = np.linspace(1000, 3000, 10_000).astype(np.uint16).reshape(100, 100)
    shown = to_rgb(image)[..., 0]
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.median(shown) == pytest.approx(127.5, abs=2)
    assert (np.diff(shown.ravel().astype(int)) >= 0).all()


def test_to_rgb_is_not_thrown_off_by_outliers_non_finite_or_constant_values():
    values = np.linspace(-2, 2, 10_000).reshape(100, 100)
    spoiled = values.copy()
    spoiled[0, :3] = np.nan, np.inf, -1e6
    difference = to_rgb(spoiled)[1:].astype(int) - to_rgb(values)[1:]
    assert np.abs(difference).max() <= 1
    assert to_rgb(spoiled)[0, 0, 0] == 0
    assert not to_rgb(np.full((4, 4), 700, np.uint16)).any()


def test_to_rgb_shows_two_bands_as_red_and_green_and_of_more_the_first_three():
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 5)).astype(np.uint8)
    assert np.array_equal(to_rgb(image), image[..., :3])
    assert np.array_equal(to_rgb(image[..., :4]), image[..., :3])
    two = to_rgb(image[..., :2])
    assert np.array_equal(two[..., :2], image[..., :2])
    assert not two[..., 2].any()


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32", "int64", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
def test_to_rgb_shows_any_type_from_its_percentiles(dtype, bands):
    """Bands of one or three channels share a scale; others are instruments' bands of their own."""
    ramp = np.linspace(0, 10_000, 10_000).reshape(100, 100)
    scales = np.array([1, 3, 2, 1, 2, 3])[:bands]
    shown = to_rgb((ramp[..., None] * scales).astype(dtype))
    assert shown.dtype == np.uint8
    together = bands in (1, 3)
    # By hand: 0 to 255 between the 0.5th and the 99.5th percentile of the values.
    grey = (ramp / 10_000 - 0.005) / 0.99
    expected = np.clip(255 * np.stack([grey] * 3, -1), 0, 255)
    if bands == 2:
        expected[..., 2] = 0
    if together:
        low, high = np.percentile(ramp[..., None] * scales, [0.5, 99.5])
        expected = np.clip(255 * (ramp[..., None] * scales - low) / (high - low), 0, 255)
    assert np.abs(shown - expected).max() <= 0.6


def test_to_rgb_scales_unit_floats_of_any_bands_by_255():
    image = np.array([[[0.0, 0.5, 1.0, 0.25]]], np.float32)
    assert to_rgb(image).tolist() == [[[0, 128, 255]]]
    assert to_rgb(image[..., 1:3]).tolist() == [[[128, 255, 0]]]


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 4, 0), (1, 4, 4, 3)])
def test_to_rgb_refuses_arrays_that_are_no_image(shape):
    with pytest.raises(ValueError, match="expected an image"):
        to_rgb(np.zeros(shape, np.uint8))
    for dtype in (bool, complex, object):
        with pytest.raises(ValueError, match=f"integers or floats, got {np.dtype(dtype)}"):
            to_rgb(np.zeros((4, 4), dtype))


@pytest.mark.parametrize(("bands", "dtype"), [(2, "uint16"), (5, "float32"), (4, "int32")])
def test_pictures_of_any_bands_are_those_of_their_rgb(bands, dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4000, (24, 30, bands)).astype(dtype)
    labels, found = rng.integers(0, 3, (2, 24, 30))
    rgb = to_rgb(image)
    assert np.array_equal(overlay(image, labels), overlay(rgb, labels))
    assert np.array_equal(overlay_instances(image, labels), overlay_instances(rgb, labels))
    assert np.array_equal(panel(image, labels, found), panel(rgb, labels, found))


def test_classes_keep_their_color_in_any_table_and_all_differ():
    table = color_map(40)
    for size in (0, 1, 2, 8, 12):
        assert np.array_equal(color_map(size), table[:size])
    lab = cv2.cvtColor(table[None].astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(40)
    assert distance.min() > 10  # 2.3 is a just noticeable difference


def test_neighbouring_instance_ids_have_clearly_different_colors():
    colors = instance_colors(np.arange(1, 500)).astype(int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100
    assert np.array_equal(instance_colors(np.array([[7]]))[0, 0], colors[6])


def test_overlay_leaves_the_background_untouched_and_its_input_unwritten(image):
    labels = np.zeros((24, 30), np.uint8)
    labels[5:15, 5:15] = 1
    before = image.copy()
    picture = overlay(image, labels, outline=2)
    outside = labels == 0
    assert np.array_equal(picture[outside], image[outside])
    assert (picture[labels == 1] != image[labels == 1]).any(axis=-1).mean() > 0.9
    assert np.array_equal(image, before)
    assert np.array_equal(overlay(image, np.zeros_like(labels)), image)


def test_overlay_blends_the_inside_by_alpha_and_draws_an_outline_of_one_color(image):
    labels = np.zeros((24, 30), np.uint8)
    labels[5:15, 5:15] = 1
    picture = overlay(image, labels, alpha=0.25)
    blended = np.round(0.75 * image + 0.25 * color_map(2)[1]).astype(np.uint8)
    assert np.array_equal(picture[6:14, 6:14], blended[6:14, 6:14])
    edge = labels.astype(bool)
    edge[6:14, 6:14] = False
    assert len(np.unique(picture[edge], axis=0)) == 1
    without = overlay(image, labels, alpha=0.25, outline=0)
    assert np.array_equal(without[5:15, 5:15], blended[5:15, 5:15])


def test_overlay_without_background_paints_every_pixel_and_takes_given_colors():
    black = np.zeros((6, 6), np.uint8)
    labels = np.repeat([[0, 0, 0, 1, 1, 1]], 6, axis=0)
    colors = np.array([[10, 20, 30], [40, 50, 60]])
    picture = overlay(black, labels, colors=colors, background=None, alpha=1.0, outline=0)
    assert np.array_equal(picture, colors[labels])


def test_overlay_hatches_ignored_pixels_in_grey():
    labels = np.full((12, 12), 255, np.uint8)
    picture = overlay(np.zeros((12, 12), np.uint8), labels)
    assert (np.ptp(picture, axis=-1) == 0).all()
    assert len(np.unique(picture)) == 2


def test_overlay_refuses_labels_without_a_color_and_other_shapes(image):
    with pytest.raises(ValueError, match=r"0\.\.1 or be 255"):
        overlay(image, np.full((24, 30), 2), colors=color_map(2))
    with pytest.raises(ValueError, match=r"shape \(24, 30\)"):
        overlay(image, np.zeros((24, 31), np.uint8))
    with pytest.raises(ValueError, match="integer labels"):
        overlay_instances(image, np.zeros((24, 30)))


@pytest.mark.parametrize("width", [30, 400, 2000])
def test_a_legend_below_names_the_classes_of_a_picture_of_any_width(width):
    picture = np.zeros((40, width, 3), np.uint8)
    labels = np.zeros((40, width), np.uint8)
    labels[:, :10], labels[0, 0] = 2, 255
    shown = with_legend(picture, labels, ("sky", "road", "car", "dog"))
    assert np.array_equal(shown[:40, :width], picture)
    assert shown.shape[1] == max(width, 320)
    strip = shown[40:]
    assert [count(strip, color) > 100 for color in color_map(4)] == [False, False, True, False]
    everywhere = with_legend(picture, labels, ("sky", "road", "car", "dog"), background=None)
    assert count(everywhere[40:], color_map(4)[0]) > 100


def test_touching_instances_are_parted_by_outlines_of_both():
    instances = np.zeros((10, 12), np.int64)
    instances[2:8, 2:6], instances[2:8, 6:10] = 1, 2**40
    picture = overlay_instances(np.zeros((10, 12), np.uint8), instances)
    assert not picture[instances == 0].any()
    left, left_edge, right_edge, right = picture[5, [4, 5, 6, 7]].astype(int)
    assert left_edge.sum() > left.sum()
    assert right_edge.sum() > right.sum()
    assert np.abs(left_edge - right_edge).sum() > 100


def test_errors_counts_each_kind_once():
    labels = np.array([[0, 0, 1, 1, 2, 2, 255, 255]])
    prediction = np.array([[0, 1, 1, 0, 2, 1, 0, 1]])
    picture = errors(labels, prediction)
    expected = {
        "background": 1,
        "false positive": 1,
        "correct": 2,
        "false negative": 1,
        "wrong class": 1,
        "ignored": 2,
    }
    assert {name: count(picture, rgb) for name, rgb in ERROR_COLORS.items()} == expected


def test_errors_without_background_knows_only_right_and_wrong():
    labels = np.array([[0, 0, 1, 255]])
    picture = errors(labels, np.array([[0, 1, 0, 0]]), background=None)
    found = {name: count(picture, rgb) for name, rgb in ERROR_COLORS.items()}
    assert {k: v for k, v in found.items() if v} == {"correct": 1, "wrong class": 2, "ignored": 1}


@pytest.mark.parametrize(("side", "shown"), [(64, 384), (100, 300), (384, 384), (512, 512)])
def test_panel_shows_the_untouched_image_enlarged_by_a_whole_number(side, shown):
    image = np.random.default_rng(1).integers(0, 256, (side, side)).astype(np.uint8)
    labels = np.zeros((side, side), np.uint8)
    factor = shown // side
    enlarged = np.kron(image, np.ones((factor, factor), np.uint8))
    picture = panel(image, labels, labels)
    assert contains(picture, np.repeat(enlarged[..., None], 3, axis=2))


def test_panel_reduces_large_images_and_keeps_their_labels():
    labels = np.zeros((600, 1200), np.int32)
    labels[:, 600:] = 70_000
    image = fit(np.zeros((600, 1200, 3), np.uint8))
    assert image.shape == (256, 512, 3)
    assert np.array_equal(
        resize_nearest(labels, image), np.repeat([[0] * 256 + [70_000] * 256], 256, 0)
    )


def test_panel_holds_truth_prediction_and_errors_as_drawn_alone():
    image = np.random.default_rng(1).integers(0, 256, (384, 300, 3)).astype(np.uint8)
    labels, prediction = np.zeros((2, 384, 300), np.uint8)
    labels[50:200, 50:200], prediction[60:210, 60:210], labels[:20] = 1, 1, 255
    picture = panel(image, labels, prediction, title="0007", scores={"IoU": float("nan")})
    for part in (overlay(image, labels), overlay(image, prediction), errors(labels, prediction)):
        assert contains(picture, part)


def test_panel_legend_names_classes_that_occur_and_no_others():
    labels = np.zeros((64, 64), np.uint8)
    labels[:30] = 2
    image = np.zeros((64, 64), np.uint8)
    picture = panel(image, labels, labels, classes=["empty", "mouse", "cat", "dog"])
    assert count(picture, color_map(4)[2]) == 12 * 12
    assert count(picture, color_map(4)[1]) == count(picture, color_map(4)[3]) == 0


def test_panel_draws_a_found_instance_in_the_color_of_the_true_one():
    image = np.zeros((384, 384), np.uint8)
    instances, found = np.zeros((2, 384, 384), np.int32)
    instances[10:100, 10:100], instances[200:300, 200:300] = 3, 8
    found[12:100, 10:100] = 1  # the first, under another id
    found[200:230, 200:300], found[232:300, 200:300] = 2, 3  # the second, split
    found[10:40, 300:340] = 4  # none
    labels, prediction = (instances > 0).astype(np.uint8), (found > 0).astype(np.uint8)
    picture = panel(image, labels, prediction, instances=instances, predicted_instances=found)
    expected = np.choose(found, [0, 3, 9, 8, 10]).astype(np.int32)
    assert contains(picture, overlay_instances(image, instances))
    assert contains(picture, overlay_instances(image, expected))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3)])
def test_panel_takes_images_of_extreme_shapes(shape):
    image = np.full(shape, 90, np.uint8)
    labels = np.ones(shape, np.uint8)
    picture = panel(image, labels, 1 - labels, title="x" * 300, classes=["a" * 40, "b" * 400])
    assert picture.dtype == np.uint8
    assert count(picture, ERROR_COLORS["false negative"]) > 0


def test_panel_refuses_a_prediction_of_another_shape():
    image = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(8, 9\)"):
        panel(image, image, np.zeros((8, 9), np.uint8))


@pytest.mark.parametrize(
    "picture",
    [
        np.random.default_rng(2).integers(0, 256, (5, 7, 3)).astype(np.uint8),
        np.random.default_rng(2).integers(0, 256, (5, 7)).astype(np.uint8),
        np.random.default_rng(2).integers(0, 65536, (5, 7)).astype(np.uint16),
    ],
)
def test_write_png_can_be_read_back_and_leaves_nothing_else(tmp_path, picture):
    path = tmp_path / "a" / "b.png"
    write_png(path, picture)
    read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert read.dtype == picture.dtype
    assert np.array_equal(read[..., ::-1] if read.ndim == 3 else read, picture)
    assert [each.name for each in path.parent.iterdir()] == ["b.png"]
