"""What annotation tools write differently: read the same and noted, or refused by name."""

import json

import numpy as np
import pytest

from segjax.coco.masks import paste_mask
from segjax.data.sources.coco_files import CocoInstances
from tests.data.sources.coco_writer import POLYGON, SIZE, annotation, without_sizes, write


def same_examples(found, expected):
    """Whether two sources have the same objects."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("boxes", "classes", "crowd", "areas", "has_mask"):
            np.testing.assert_array_equal(ours[key], theirs[key])
        for a, b in zip(ours["masks"], theirs["masks"], strict=True):
            np.testing.assert_array_equal(paste_mask(a, SIZE), paste_mask(b, SIZE))


def without(*keys):
    def change(content):
        for entry in content["annotations"]:
            for key in keys:
                del entry[key]

    return change


def with_segmentation(make):
    def change(content):
        for entry in content["annotations"]:
            entry["segmentation"] = make(entry["segmentation"][0])

    return change


def with_ids(make):
    def change(content):
        for part in ("images", "annotations", "categories"):
            for entry in content[part]:
                for key in ("id", "image_id", "category_id"):
                    if key in entry:
                        entry[key] = make(entry[key])

    return change


def in_a_folder(content):
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]


def with_a_root(content):
    content["categories"] += [{"id": 0, "name": "cell"}, {"id": 1, "name": "background"}]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (with_ids(str), "3 of 3 annotations have ids as text"),
        (with_ids(float), "3 of 3 images have ids as text or fractions"),
        (without("iscrowd"), "3 of 3 annotations have no iscrowd: read as 0"),
        (without("area"), "3 of 3 annotations have no area"),
        (without("bbox"), "3 of 3 annotations have no bbox: taken from the segmentation"),
        (with_segmentation(lambda p: p), "have one list of numbers as segmentation"),
        (
            with_segmentation(lambda p: [[[x, y] for x, y in zip(p[::2], p[1::2], strict=True)]]),
            "have corners as [x, y] pairs",
        ),
        (without_sizes, "3 of 3 images have no size: read from the files"),
        (in_a_folder, "3 of 3 file names read without the folder that they begin with"),
        (with_a_root, "category 0, 'cell', left out: nothing is annotated with it"),
        (with_a_root, "category 1, 'background', left out: nothing is annotated with it"),
    ],
)
def test_what_tools_write_differently_is_read_the_same_and_noted(tmp_path, change, note):
    annotations = [
        annotation(1, area=50),
        annotation(2, 9, area=50),
        annotation(3, 70, 90, area=50),
    ]
    path, images = write(tmp_path, *annotations)
    expected = list(CocoInstances(path, images))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    source = CocoInstances(path, images)
    same_examples(source, expected)
    assert source.class_names == ("background", "cell", "straße")
    assert any(note in found for found in source.notes)


def test_ids_are_given_back_as_the_file_has_them(tmp_path):
    path, images = write(tmp_path, annotation(1, category=90), annotation(2, image=70))
    content = json.loads(path.read_text())
    for make, ids, categories in (
        (str, ["5", "9", "70"], ("7", "90")),
        (float, [5, 9, 70], (7, 90)),
        (lambda number: f"x{number}", ["x5", "x70", "x9"], ("x7", "x90")),
        (lambda number: number + 2**70, [2**70 + n for n in (5, 9, 70)], (2**70 + 7, 2**70 + 90)),
    ):
        changed = json.loads(json.dumps(content))
        with_ids(make)(changed)
        path.write_text(json.dumps(changed))
        source = CocoInstances(path, images)
        assert source.image_ids.tolist() == ids
        assert source.category_ids == categories
        assert [example["image_id"] for example in source] == ids
        assert type(source[0]["image_id"]) is type(ids[0])


@pytest.mark.parametrize(("text", "crowd"), [("0", False), ("1", True), ("", False), (True, True)])
def test_the_meaning_of_a_crowd_does_not_depend_on_its_type(tmp_path, text, crowd):
    source = CocoInstances(*write(tmp_path, annotation(1, iscrowd=text)))
    assert source[0]["crowd"].tolist() == [crowd]
    assert source.object_counts.tolist() == [not crowd, 0, 0]


def test_nothing_but_crowds_names_the_cause(tmp_path):
    path, images = write(tmp_path, annotation(1, iscrowd=1), annotation(2, iscrowd=1))
    assert "all 2 annotations are crowds" in CocoInstances(path, images).notes[0]
    with pytest.raises(ValueError, match="no images with objects: all 2 annotations are crowds"):
        CocoInstances(path, images, empty_share=0.0)


def test_values_that_pandas_writes_for_missing_ones_are_missing(tmp_path):
    path, images = write(tmp_path, annotation(1, area=50))
    expected = list(CocoInstances(path, images))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"area": 50', '"area": NaN, "score": NaN'), encoding="utf-8")
    same_examples(CocoInstances(path, images), expected)
    path.write_text(text.replace("12", "NaN"), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"objects\.json: annotation 1: segmentation has the polyg"
    ):
        CocoInstances(path, images)


def test_other_encodings_are_read_or_named(tmp_path):
    path, images = write(tmp_path, annotation(1))
    expected, text = list(CocoInstances(path, images)), path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    source = CocoInstances(path, images)
    same_examples(source, expected)
    assert source.class_names == ("background", "cell", "straße")
    path.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"objects\.json: encoded as UTF-16; save .* as UTF-8"):
        CocoInstances(path, images)
    path.write_bytes(text.replace("\u4e2d", "").encode("latin-1"))
    with pytest.raises(ValueError, match=r"objects\.json: not encoded as UTF-8 .*; save"):
        CocoInstances(path, images)


def test_a_few_boxes_as_corners_are_noted(tmp_path):
    annotations = [annotation(n) for n in range(3)] + [annotation(8, bbox=[2, 3, 12, 8])]
    (note,) = CocoInstances(*write(tmp_path, *annotations)).notes
    assert note.startswith("1 of 4 annotations have a bbox that looks like [x_min, y_min, x_max")
    assert (
        "annotation 8 has bbox [2, 3, 12, 8], and its mask reaches from [2, 3] to [12, 8]" in note
    )


@pytest.mark.parametrize(
    "bbox",
    [
        [7, 5.5, 10, 5],  # the centre instead of the corner
        [0.07, 0.15, 0.33, 0.25],  # parts of the image's width and height
    ],
)
def test_boxes_that_do_not_fit_their_masks_are_noted_and_refused_where_most_do_not(tmp_path, bbox):
    path, images = write(tmp_path, *(annotation(n) for n in range(3)), annotation(8, bbox=bbox))
    (note,) = CocoInstances(path, images).notes
    assert note.startswith("1 of 4 annotations have a bbox that does not fit their mask")
    assert f"annotation 8 has bbox {bbox}, and its mask reaches from [2, 3] to [12, 8]" in note
    content = json.loads(path.read_text())
    content["annotations"] = [*content["annotations"][2:], annotation(9, bbox=bbox)]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"objects\.json: 2 of 3 annotations have a bbox that doe"):
        CocoInstances(path, images)


def test_polygons_of_two_corners_are_left_out_and_noted(tmp_path):
    line = annotation(2, segmentation=[[1, 2, 3, 4], POLYGON[0]])
    source = CocoInstances(*write(tmp_path, annotation(1), line))
    first, second = source[0]["masks"]
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert source.notes == (
        "1 of 2 annotations have polygons of fewer than three corners, which enclose nothing: "
        "left out",
    )


def test_an_empty_mask_is_noted(tmp_path):
    empty = {"size": SIZE, "counts": [SIZE[0] * SIZE[1]]}
    path, images = write(tmp_path, annotation(1), annotation(2, segmentation=empty))
    notes = CocoInstances(path, images).notes
    assert "1 of 2 annotations have run lengths without a pixel: an empty mask" in notes
