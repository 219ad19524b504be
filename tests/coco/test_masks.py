import json
import warnings

import numpy as np
import pytest

from segjax.coco.masks import draw_polygon, draw_segmentation


def decoded_by_coco(segmentation, size):
    """The mask that COCO's own code draws."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    runs = coco_mask.frPyObjects(segmentation, *map(int, size))
    if isinstance(runs, list):
        runs = coco_mask.merge(runs)
    with warnings.catch_warnings():  # pycocotools 2.0.11 warns with NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(runs).astype(bool)


@pytest.mark.parametrize("turned", [False, True])
def test_a_rectangle_covers_the_half_open_range_of_pixels(turned):
    corners = [(2, 1), (5, 1), (5, 4), (2, 4)]
    polygon = np.ravel(corners[::-1] if turned else corners)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(draw_polygon(polygon, (6, 8)), expected)


def test_pixels_outside_the_image_are_cut_off():
    assert draw_polygon([-9, -9, 99, -9, 99, 99, -9, 99], (6, 8)).all()
    assert not draw_polygon([20, 1, 30, 1, 30, 4, 20, 4], (6, 8)).any()


def test_a_polygon_that_crosses_itself_is_filled_by_the_parity_of_crossings():
    mask = draw_polygon([0, 0, 8, 0, 8, 8, 0, 8, 0, 0, 8, 0, 8, 8, 0, 8], (8, 8))
    assert not mask.any()


def test_random_polygons_are_those_of_coco():
    rng = np.random.default_rng(0)
    for trial in range(400):
        size = tuple(rng.integers(1, 50, 2).tolist())
        polygon = rng.uniform(-10, 60, 2 * rng.integers(3, 9))
        if trial % 3 == 0:
            polygon = polygon.round()
        if trial % 5 == 0:
            polygon[2:4] = polygon[:2]  # a corner given twice
        expected = decoded_by_coco([polygon.tolist()], size)
        np.testing.assert_array_equal(draw_polygon(polygon, size), expected, err_msg=str(trial))


def test_the_masks_of_real_annotations_are_those_of_coco(real_data):
    path = real_data / "coco_mini" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    crowds = [annotation for annotation in content["annotations"] if annotation["iscrowd"]]
    assert crowds
    for annotation in content["annotations"][:200] + crowds:
        size = sizes[annotation["image_id"]]
        mask = draw_segmentation(annotation["segmentation"], size)
        np.testing.assert_array_equal(mask, decoded_by_coco(annotation["segmentation"], size))


def test_polygons_of_one_instance_are_united():
    parts = [[0, 0, 3, 0, 3, 3, 0, 3], [2, 2, 6, 2, 6, 6, 2, 6]]
    expected = draw_polygon(parts[0], (8, 8)) | draw_polygon(parts[1], (8, 8))
    np.testing.assert_array_equal(draw_segmentation(parts, (8, 8)), expected)


def test_runs_go_down_the_columns_and_begin_with_background():
    mask = draw_segmentation({"counts": [1, 2, 1, 2], "size": [2, 3]}, (2, 3))
    np.testing.assert_array_equal(mask, [[0, 1, 1], [1, 0, 1]])


def test_compressed_runs_are_read_too():
    mask = draw_segmentation({"counts": "1210", "size": [2, 3]}, (2, 3))
    np.testing.assert_array_equal(mask, [[0, 1, 1], [1, 0, 1]])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [2, 3]}, r"expected run lengths for \(2, 3\), found {'size'"),
        (
            {"counts": [6], "size": [3, 2]},
            r"for \(2, 3\), found {'counts': \[6\], 'size': \[3, 2\]}",
        ),
        ({"counts": [1, 2], "size": [2, 3]}, "expected runs that fill 2 × 3 pixels, found 3"),
        ({"counts": "é!", "size": [2, 3]}, "expected compressed run lengths as COCO writes them"),
        ([], r"expected polygons or run lengths, found \[\]"),
        ("polygon", "expected polygons or run lengths, found 'polygon'"),
    ],
)
def test_a_wrong_segmentation_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        draw_segmentation(segmentation, (2, 3))


@pytest.mark.parametrize("polygon", [[], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
def test_wrong_polygons_are_refused(polygon):
    with pytest.raises(ValueError, match="expected a polygon"):
        draw_polygon(polygon, (8, 8))
