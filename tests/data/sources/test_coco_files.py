"""Any JSON file in COCO's format is read image by image, as pycocotools reads the whole."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.coco import run_lengths as rle
from segjax.coco.masks import paste_mask
from segjax.data.loading.loader import training_batches
from segjax.data.sources.coco_files import CocoInstances

SIZE = (20, 30)
BOX = [2, 3, 10, 5]
POLYGON = [[2, 3, 12, 3, 12, 8, 2, 8]]


def annotation(number, image=5, category=7, **more):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": BOX,
        "area": 50.5,
        "iscrowd": 0,
        "segmentation": POLYGON,
        **more,
    }


def drawn():
    """The mask of `POLYGON`."""
    mask = np.zeros(SIZE, bool)
    mask[3:8, 2:12] = True
    return mask


def write(folder, *annotations, **parts):
    """Writes three images, by ids 5, 9 and 70, and a file that describes them."""
    (folder / "images").mkdir()
    content = {
        "info": {"description": 'nested {["]}: è, \u4e2d', "list": [1, {"annotations": []}]},
        "annotations": list(annotations),
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in ((70, "c.png"), (5, "ü é.png"), (9, "b.png"))
        ],
        "categories": [{"id": 90, "name": "straße"}, {"id": 7, "name": "cell"}],
        **parts,
    }
    for image in content["images"]:
        pixels = np.full(SIZE, image["id"], np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    path = folder / "objects.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return path, folder / "images"


def test_examples_are_in_the_order_of_image_ids_and_classes_in_that_of_categories(tmp_path):
    annotations = [annotation(1, category=90), annotation(2, image=70), annotation(3, iscrowd=1)]
    source = CocoInstances(*write(tmp_path, *annotations))
    assert source.class_names == ("background", "cell", "straße")
    assert source.category_ids == (7, 90)
    assert source.image_ids.tolist() == [5, 9, 70]
    assert source.ids == ("ü é", "b", "c")
    np.testing.assert_array_equal(source.sizes, [SIZE] * 3)
    examples = list(source)
    assert [example["image_id"] for example in examples] == [5, 9, 70]
    assert [example["classes"].tolist() for example in examples] == [[2, 1], [], [1]]
    assert [example["crowd"].tolist() for example in examples] == [[False, True], [], [False]]
    first = examples[0]
    np.testing.assert_array_equal(first["image"], np.full((*SIZE, 3), 5, np.uint8))
    np.testing.assert_array_equal(first["boxes"], [[2, 3, 12, 8]] * 2)
    np.testing.assert_array_equal(first["areas"], np.float32([50.5, 50.5]))
    np.testing.assert_array_equal(paste_mask(first["masks"][0], SIZE), drawn())
    assert examples[1]["boxes"].shape == (0, 4)
    for example in examples:
        assert {key: example[key].dtype for key in ("boxes", "classes", "crowd", "areas")} == {
            "boxes": np.float32,
            "classes": np.int32,
            "crowd": bool,
            "areas": np.float32,
        }


def test_every_form_of_a_mask_is_read(tmp_path):
    mask = drawn()
    compressed = rle.encode(mask)
    forms = [
        POLYGON,
        [[2, 3, 7, 3, 7, 8, 2, 8], [7, 3, 12, 3, 12, 8, 7, 8], [1, 1, 2, 2]],
        compressed,
        {**compressed, "counts": rle.run_lengths(mask).tolist()},
    ]
    annotations = [annotation(i, segmentation=form) for i, form in enumerate(forms)]
    example = CocoInstances(*write(tmp_path, *annotations))[0]
    assert len(example["masks"]) == 4
    for found in example["masks"]:
        np.testing.assert_array_equal(paste_mask(found, SIZE), mask)
        assert found.box == (2, 3, 12, 8)


def test_boxes_are_clipped_and_what_has_no_extent_is_left_out_and_counted(tmp_path):
    boxes = [[-5, -5, 10, 10], [25, 10, 10, 20], [3, 3, 0, 5], [3, 3, 5, -1], [30, 3, 5, 5]]
    boxes.append([20, 3, 2.0**-20, 5])  # float32 has no such width at 20
    annotations = [
        annotation(i, bbox=[x, y, w, h], segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    path, images = write(tmp_path, *annotations)
    source = CocoInstances(path, images)
    np.testing.assert_array_equal(source[0]["boxes"], [[0, 0, 5, 5], [25, 10, 30, 20]])
    assert source.notes == ("4 of 6 annotations left out: no width or height within the image",)
    assert source.object_counts.tolist() == [2, 0, 0]
    # COCO's scores count them all, with the boxes of the file.
    scored = CocoInstances(path, images, for_scores=True)
    np.testing.assert_array_equal(scored[0]["annotated_boxes"], boxes)
    np.testing.assert_array_equal(scored[0]["annotated_areas"], [50.5] * 6)


def test_an_object_with_a_box_alone_has_no_mask_and_one_with_neither_is_left_out(tmp_path):
    annotations = [annotation(7, segmentation=s) for s in ([], [[1, 2, 3, 4]], None)]
    annotations += [annotation(8), annotation(9, bbox=None, segmentation=[])]
    source = CocoInstances(*write(tmp_path, *annotations), drop_empty=True)
    assert source.notes == (
        "1 of 5 annotations left out: neither bbox nor segmentation",
        "3 of 5 annotations have a box and no segmentation: they count in box scores and train "
        "class and box, but not the mask",
        "1 of 5 annotations have no bbox: taken from the segmentation",
        "1 of 5 annotations have polygons of fewer than three corners, which enclose nothing: "
        "left out",
        "2 of 3 images left out: no objects (input.keep_empty keeps them)",
    )
    example = source[0]
    assert example["has_mask"].tolist() == [False, False, False, True]
    assert source.object_counts.tolist() == [4]
    np.testing.assert_array_equal(example["boxes"], [[2, 3, 12, 8]] * 4)
    for mask in example["masks"]:  # that of a box is the box, for crops to move
        np.testing.assert_array_equal(paste_mask(mask, SIZE), drawn())


def test_dropping_empty_images_drops_those_with_crowds_or_flat_boxes_alone(tmp_path):
    annotations = [
        annotation(1, image=9, iscrowd=1),
        annotation(2, image=5, bbox=[1, 1, 0, 0]),
        annotation(3, image=70),
        annotation(4, image=70, iscrowd=1),
    ]
    path, images = write(tmp_path, *annotations)
    assert len(CocoInstances(path, images)) == 3
    source = CocoInstances(path, images, drop_empty=True)
    assert (source.image_ids.tolist(), source.ids) == ([70], ("c",))
    np.testing.assert_array_equal(source[0]["crowd"], [False, True])
    (tmp_path / "images" / "b.png").unlink()  # not one of those kept
    assert len(CocoInstances(path, images, drop_empty=True)) == 1


def test_areas_and_crowds_may_be_missing(tmp_path):
    short = annotation(1)
    del short["area"], short["iscrowd"]
    example = CocoInstances(*write(tmp_path, short))[0]
    np.testing.assert_array_equal(example["areas"], [50])
    np.testing.assert_array_equal(example["crowd"], [False])


def test_files_of_the_same_name_in_two_folders_are_told_apart_by_the_ids_of_images(tmp_path):
    for folder in ("images", "images/x", "images/y"):
        (tmp_path / folder).mkdir()
    images = [
        {"id": number, "file_name": name, "height": 4, "width": 4}
        for number, name in ((3, "x/a.png"), (2, "y/a.png"))
    ]
    for image in images:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / image["file_name"])
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert CocoInstances(path, tmp_path / "images").ids == ("2", "3")


def test_an_index_outside_is_an_error_and_ends_iteration(tmp_path):
    source = CocoInstances(*write(tmp_path, annotation(1)))
    assert len(list(source)) == 3
    with pytest.raises(IndexError, match="example 3 of 3"):
        source[3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"categories": None}, "missing: categories"),
        ({"annotations": {}}, "missing: annotations"),
        ({"categories": [{"id": None, "name": "x"}]}, "category id None is no id"),
        ({"categories": [{"id": 7}]}, "categories need an id and a name"),
        ({"categories": [{"id": 7, "name": "x"}] * 2}, "two categories have the same id"),
        (
            {"categories": [{"id": 8, "name": "x"}]},
            "1 annotations have the category_id of no category in the file, such as 7",
        ),
        (
            {"annotations": [annotation(1, image=6)]},
            "1 annotations have the image_id of no image in the file, such as 6",
        ),
        ({"annotations": [annotation(1, image=None)]}, "annotation 1: image_id None is no id"),
        ({"annotations": [annotation(1, image=5.5)]}, "annotation 1: image_id 5.5 is no id"),
        ({"annotations": [{"id": 3}]}, "annotation 3: .* found no image_id"),
        ({"annotations": [annotation(41, bbox=[1, 2, 3])]}, "annotation 41: bbox is .* four"),
        ({"annotations": [annotation(1, bbox=[1, 2, 3, None])]}, "annotation 1: bbox is"),
        ({"annotations": ["x"]}, "annotation 'x': expected image_id"),
        ({"annotations": [annotation(1, bbox=[1, 2, 0, 4])]}, "no annotation is usable. 1 of 1"),
        ({"annotations": [annotation(1, iscrowd="x")]}, "annotation 1: iscrowd is 'x'"),
        ({"annotations": [annotation(1, area="big")]}, "annotation 1: area is 'big'"),
        ({"annotations": [annotation(1, segmentation="AAAA")]}, "annotation 1: segmentation is"),
        (
            {"annotations": [annotation(1, segmentation=[[1, 2, 3, 4, 5, "x"]])]},
            "annotation 1: segmentation has the polygon .* finite numbers",
        ),
        (
            {"annotations": [annotation(1, segmentation=[[1, 2, 3, 4, 5, 6, 7]])]},
            "annotation 1: segmentation has a polygon of 7 numbers",
        ),
        (
            {"annotations": [annotation(1, segmentation=[[1, 2, 3, 4, 1e9, 6]])]},
            r"annotation 1: segmentation reaches over \[1, 2, 1e\+09, 6\]; expected .* pixels",
        ),
        (
            {"annotations": [annotation(1, segmentation={"size": SIZE, "counts": [5, 5]})]},
            "annotation 1: expected runs that fill 20 × 30 pixels",
        ),
        *(
            (
                {"annotations": [annotation(1, segmentation={"size": size, "counts": [600]})]},
                r"annotation 1: segmentation has run lengths for .* in pixels",
            )
            for size in ([20.5, 30], [-20, -30], [2**32, 1])
        ),
        (
            {"annotations": [annotation(6, 9, segmentation=rle.encode(np.ones((3, 3), bool)))]},
            r"annotation 6 of image 9: expected run lengths for \[20, 30\], found \[3, 3\]",
        ),
        (
            {"annotations": [annotation(n, bbox=[2, 3, 12, 8]) for n in (4, 5)]},
            r"2 of 2 annotations have a bbox that looks like \[x_min, .* annotation 4 has bbox",
        ),
        (
            {"categories": [{"id": n, "name": "fish"} for n in (7, 8)]}
            | {"annotations": [annotation(1), annotation(2, category=8)]},
            "two categories have the name 'fish': 7 and 8",
        ),
        ({"categories": [{"id": 7, "name": "Background"}]}, "category 7 is named 'Background'"),
    ],
)
def test_a_file_in_another_format_is_refused_by_name(tmp_path, parts, message):
    path, images = write(tmp_path, annotation(1), **parts)
    with pytest.raises(ValueError, match=rf"objects\.json: .*{message}"):
        CocoInstances(path, images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"id": 5}, "two images have the id 5"),
        ({"id": "5"}, "two images have the id 5"),
        ({"width": "wide"}, "image 1 has height 20, width 'wide'; expected whole numbers"),
        ({"width": 10**9}, "image 1 has height 20, width 1000000000; expected whole numbers of"),
        ({"file_name": None}, "image 1 has no file_name"),
        ({"file_name": 7}, "image 1 has file_name 7; expected a text"),
    ],
)
def test_a_wrong_image_is_named(tmp_path, image, message):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    template = {"id": 1, "file_name": "b.png", "height": SIZE[0], "width": SIZE[1]}
    content["images"].append({**template, **image})
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"objects\.json: {message}"):
        CocoInstances(path, images)


@pytest.mark.parametrize("text", ["", '{"images": [', '{"annotations": [{}', "{"])
def test_what_is_not_json_or_cut_short_is_refused_by_name(tmp_path, text):
    path, images = write(tmp_path)
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"objects\.json: (not JSON, or cut short|annotation None)"
    ):
        CocoInstances(path, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "NaN", r"not JSON, or cut short \(Extra data"),
        (lambda text: text + "\n" + text, r"not JSON, or cut short \(Extra data"),
        (lambda text: f"[{text}]", "not in COCO's format: a list, as files of results are"),
        (lambda text: text[:-1] + ', "images": []}', "two lists named images"),
        (lambda text: text[:-1] + ', "annotations": []}', "two lists named annotations"),
        (lambda text: text.replace('"image_id": 5', '"image_id": 5' + "0" * 5000), "4300 digits"),
        (lambda text: text.replace('"cell"', '["fish"]'), "need an id and a name"),
        (lambda text: text.replace('"cell"', '"  "'), "need an id and a name"),
    ],
)
def test_nothing_of_a_file_is_passed_over(tmp_path, change, message):
    path, images = write(tmp_path, annotation(1))
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(ValueError, match=rf"^[^ ]*objects\.json: .*{message}"):
        CocoInstances(path, images)
    path.write_text(text + " \r\n\n")
    assert len(CocoInstances(path, images)) == 3


def test_an_empty_mask_is_noted(tmp_path):
    empty = {"size": SIZE, "counts": [SIZE[0] * SIZE[1]]}
    path, images = write(tmp_path, annotation(1), annotation(2, segmentation=empty))
    notes = CocoInstances(path, images).notes
    assert "1 of 2 annotations have run lengths without a pixel: an empty mask" in notes


def test_every_truncation_of_a_file_is_refused(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = path.read_bytes()
    for length in range(len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"objects\.json"):
            CocoInstances(path, images)


def test_missing_files_are_named_at_once(tmp_path):
    path, images = write(tmp_path, annotation(1))
    (images / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: missing, and 0 more of the 3 images"):
        CocoInstances(path, images)
    (images / "b.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"b\.png: missing, and 0 more of the 3 images"):
        CocoInstances(path, images)
    (images / "b.png").rmdir()
    (images / "b.png").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"b\.png: missing, and 0 more of the 3 images"):
        CocoInstances(path, images)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        CocoInstances(path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no\.json: no such file"):
        CocoInstances(tmp_path / "no.json", images)


def test_an_image_of_another_size_is_named(tmp_path):
    path, images = write(tmp_path, annotation(1, image=5))
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(images / "ü é.png")
    source = CocoInstances(path, images)
    with pytest.raises(ValueError, match=r"ü é\.png: size \(3, 3\), but .*objects\.json says"):
        source[0]


def test_every_wrong_image_is_found_by_its_header(tmp_path):
    path, images = write(tmp_path, annotation(1))
    source = CocoInstances(path, images)
    assert source.file_problems() == {}
    (images / "ü é.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(images / "c.png")
    problems = source.file_problems()
    assert set(problems) == {0, 2}  # in the order of ids
    assert "ü é.png: damaged, cut short" in problems[0]
    assert "c.png: size (3, 3), but" in problems[2]


def test_every_unreadable_image_without_a_size_is_named(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    without_sizes(content)
    path.write_text(json.dumps(content))
    for name in ("b.png", "c.png"):
        (images / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"b\.png: damaged.*\n.*c\.png: damaged"):
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


def test_a_file_that_changed_since_it_was_opened_is_noticed(tmp_path):
    path, images = write(tmp_path, annotation(1))
    source = CocoInstances(path, images)
    path.write_bytes(path.read_bytes().replace(b'"annotations"', b'"annotations" '))
    with pytest.raises(ValueError, match=r"objects\.json: changed since it was opened"):
        source[0]


def test_real_annotations_are_those_of_pycocotools(real_data):
    folder = real_data / "coco_mini"
    path = folder / "annotations" / "instances_val2017.json"
    coco_api = pytest.importorskip("pycocotools.coco")
    reference = coco_api.COCO()
    reference.dataset = json.loads(path.read_text())
    reference.createIndex()
    source = CocoInstances(path, folder / "val2017")
    assert source.notes == ()
    assert source.image_ids.tolist() == sorted(reference.getImgIds())
    assert source.category_ids == tuple(sorted(reference.getCatIds()))
    crowds = 0
    for number in range(len(source)):
        example = source[number]
        expected = reference.loadAnns(reference.getAnnIds([example["image_id"]]))
        assert len(expected) == len(example["masks"])
        for place, other in enumerate(expected):
            found = example["masks"][place]
            size = example["image"].shape[:2]
            encoded = rle.encode(found.pixels, size=size, top=found.top, left=found.left)
            assert encoded["counts"] == reference.annToRLE(other)["counts"].decode()
            x, y, width, height = other["bbox"]
            box = [x, y, x + width, y + height]
            np.testing.assert_allclose(example["boxes"][place], box, atol=1e-3)
            assert example["areas"][place] == np.float32(other["area"])
            assert source.category_ids[example["classes"][place] - 1] == other["category_id"]
            assert example["crowd"][place] == other["iscrowd"]
            crowds += other["iscrowd"]
    assert crowds


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


def without_sizes(content):
    content["images"][0] |= {"height": -1, "width": -1}
    content["images"][1] |= {"height": None, "width": None}
    del content["images"][2]["height"]


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
        CocoInstances(path, images, drop_empty=True)


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


def test_a_file_that_is_several_images_is_noted(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = content["images"][2]["file_name"]
    path.write_text(json.dumps(content))
    repeated, unused = CocoInstances(path, images).notes
    assert repeated.startswith("1 files are listed as several images, such as 'b.png'")
    assert unused.startswith("1 images in ")


def test_categories_are_matched_to_the_classes_of_a_run_by_name(tmp_path):
    path, images = write(tmp_path, annotation(1, category=90), annotation(2, image=70))
    source = CocoInstances(path, images, classes=("straße", "tree", "cell"))
    assert [example["classes"].tolist() for example in source] == [[1], [], [3]]
    assert source.category_ids == (90, 91, 7)  # 91 is no category of the file
    assert source.class_counts == (1, 0, 1)
    assert source.notes == ("lists no category for these classes, matched by name: tree",)
    with pytest.raises(
        ValueError, match=r"objects.json has categories .*: 'straße' \(1 annotations"
    ):
        CocoInstances(path, images, classes=("cell",))
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))
    (note,) = CocoInstances(path, images, classes=("cell",)).notes
    assert note == "categories that are no classes, and that nothing is annotated with: straße"


def test_two_images_that_would_be_the_same_file_are_refused(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "x/b.png", "y/b.png"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"file names 'y/b\.png' and 'b\.png' both lead"):
        CocoInstances(path, images)


def turned_by_exif(folder, tag):
    """The situation of a phone's photograph: the tag turns it, the annotations are of the bitmap.

    The object of `POLYGON` is bright on each bitmap.
    """
    path, images = write(folder, *(annotation(n, image=n) for n in (5, 9, 70)))
    content, exif = json.loads(path.read_text()), Image.Exif()
    exif[274] = tag
    for image in content["images"]:
        (images / image["file_name"]).unlink()
        image["file_name"] = f"{image['id']}.png"
        pixels = np.where(drawn(), np.uint8(200), np.uint8(image["id"]))
        Image.fromarray(pixels).save(images / image["file_name"], exif=exif)
    path.write_text(json.dumps(content))
    return path, images


@pytest.mark.parametrize("tag", [3, 6])
def test_annotations_of_the_stored_bitmap_fit_it_with_the_switch(tmp_path, tag):
    path, images = turned_by_exif(tmp_path, tag)
    source = CocoInstances(path, images, orientation="stored")
    for example in source:
        mask = paste_mask(example["masks"][0], SIZE)
        np.testing.assert_array_equal(example["image"][..., 0] == 200, mask)
    (note,) = source.notes
    assert note.startswith(f"3 of 3 images carry an EXIF orientation, such as 5.png ({tag}): it is")


def test_without_the_switch_a_quarter_turn_is_refused_and_a_half_turn_is_noted(tmp_path):
    (tmp_path / "quarter").mkdir()
    source = CocoInstances(*turned_by_exif(tmp_path / "quarter", 6))
    with pytest.raises(ValueError, match=r"5\.png: size \(30, 20\), .* says \(20, 30\)") as error:
        source[0]
    assert "carries EXIF orientation 6 and was turned upright" in str(error.value)
    assert "Set orientation (files.orientation) to stored" in str(error.value)
    (tmp_path / "half").mkdir()
    source = CocoInstances(*turned_by_exif(tmp_path / "half", 3))
    np.testing.assert_array_equal(source[0]["image"][..., 0] == 200, drawn()[::-1, ::-1])
    (note,) = source.notes
    assert note.startswith("3 of 3 images carry an EXIF orientation, such as 5.png (3): they are")
    assert "set orientation (files.orientation) to stored" in note


def test_sizes_that_the_file_lacks_are_those_of_the_image_as_it_is_read(tmp_path):
    path, images = turned_by_exif(tmp_path, 6)
    content = json.loads(path.read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    path.write_text(json.dumps(content))
    for orientation, size in (("upright", SIZE[::-1]), ("stored", SIZE)):
        source = CocoInstances(path, images, orientation=orientation)
        np.testing.assert_array_equal(source.sizes, [size] * 3)


def test_a_listed_file_without_an_images_suffix_is_not_called_skipped(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    for image in content["images"]:
        (images / image["file_name"]).rename(images / Path(image["file_name"]).stem)
        image["file_name"] = Path(image["file_name"]).stem
    path.write_text(json.dumps(content))
    source = CocoInstances(path, images)
    assert len([*source]) == 3
    assert not any("skipped" in note for note in source.notes)


def test_files_that_are_not_used_are_counted(tmp_path):
    path, images = write(tmp_path, annotation(1))
    path = path.rename(images / "_annotations.json")
    for name in ("z.png", "notes.txt"):
        (images / name).write_bytes((images / "b.png").read_bytes())
    source = CocoInstances(path, images, drop_empty=True)
    assert source.notes[1:] == (
        f"1 of 6 files in {images} are no images, skipped: notes.txt",
        f"1 images in {images} are not listed, and not used: z.png",
    )


def test_a_source_pickles_small_and_reads_the_same_in_a_worker(tmp_path):
    source = CocoInstances(*write(tmp_path, *(annotation(i) for i in range(50))))
    source[0]
    assert len(pickle.dumps(source)) < 5000
    options = {"batch_size": 1, "seed": 0, "num_threads": 1}
    for workers in (0, 1):
        batches = training_batches(source, (_first_box,), num_workers=workers, **options)
        boxes = [next(batches)["boxes"] for _ in range(3)]
        batches.close()
        np.testing.assert_array_equal(np.sort(np.sum(boxes, axis=(1, 2, 3))), [0, 0, 50 * 25])


def _first_box(example, rng):
    padded = np.zeros((50, 4), np.float32)
    padded[: len(example["boxes"])] = example["boxes"]
    return {"id": example["id"], "boxes": padded}
