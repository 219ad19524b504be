"""Any JSON file in COCO's format is read image by image, as pycocotools reads the whole."""

import json
import pickle

import numpy as np
import pytest

from segjax.coco import run_lengths as rle
from segjax.coco.masks import paste_mask
from segjax.data.loading.loader import training_batches
from segjax.data.sources.coco_files import CocoInstances
from tests.data.sources.coco_writer import POLYGON, SIZE, annotation, drawn, write


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
    source = CocoInstances(*write(tmp_path, *annotations), empty_share=0.0)
    assert source.notes == (
        "1 of 5 annotations left out: neither bbox nor segmentation",
        "3 of 5 annotations have a box and no segmentation: they count in box scores and train "
        "class and box, but not the mask",
        "1 of 5 annotations have no bbox: taken from the segmentation",
        "1 of 5 annotations have polygons of fewer than three corners, which enclose nothing: "
        "left out",
        "2 of 2 images without objects are left out (input.empty_share 0)",
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
    source = CocoInstances(path, images, empty_share=0.0)
    assert (source.image_ids.tolist(), source.ids) == ([70], ("c",))
    np.testing.assert_array_equal(source[0]["crowd"], [False, True])
    (tmp_path / "images" / "b.png").unlink()  # not one of those kept
    assert len(CocoInstances(path, images, empty_share=0.0)) == 1


def test_areas_and_crowds_may_be_missing(tmp_path):
    short = annotation(1)
    del short["area"], short["iscrowd"]
    example = CocoInstances(*write(tmp_path, short))[0]
    np.testing.assert_array_equal(example["areas"], [50])
    np.testing.assert_array_equal(example["crowd"], [False])


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


def test_every_truncation_of_a_file_is_refused(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = path.read_bytes()
    for length in range(len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"objects\.json"):
            CocoInstances(path, images)


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


def test_objects_of_other_categories_are_left_out_and_counted_if_asked(tmp_path):
    annotations = [
        annotation(1, category=90),
        annotation(2, category=7, bbox=[1, 1, 20, 18], segmentation=[]),
        annotation(3, category=90, iscrowd=1),
        annotation(4, image=70, category=90),
        annotation(5, image=70, category=8),
        annotation(6, image=70, category=90, bbox=[1, 1, 0, 5]),  # flat
    ]
    categories = [{"id": i, "name": n} for i, n in ((7, "cell"), (90, "straße"), (8, "tree"))]
    path, images = write(tmp_path, *annotations, categories=categories)
    every = CocoInstances(path, images, for_scores=True)
    for chosen in (("cell",), ("tree", "cell")):
        options = {"classes": chosen, "leave_out_others": True}
        source = CocoInstances(path, images, for_scores=True, **options)
        assert source.class_names == ("background", *chosen)
        assert source.category_ids == {1: (7,), 2: (8, 7)}[len(chosen)]
        assert source.class_counts == (1,) * len(chosen)
        assert len(source) == len(every)  # in scores, images keep their place
        for example, whole in zip(source, every, strict=True):
            names = [every.class_names[number] for number in whole["classes"]]
            kept = [place for place, name in enumerate(names) if name in chosen]
            assert [source.class_names[number] for number in example["classes"]] == [
                names[place] for place in kept
            ]
            for key in ("boxes", "crowd", "annotated_boxes", "has_mask"):
                np.testing.assert_array_equal(example[key], whole[key][kept])
        assert source.object_counts.tolist() == [1, 0, len(chosen) - 1]
        training = CocoInstances(path, images, empty_share=0.0, **options)
        assert training.image_ids.tolist() == [5, 70][: len(chosen)]
    assert "3 of 5 annotations left out: of categories that are no classes (straße 3)" in (
        source.notes
    )
    both = CocoInstances(path, images, classes=("cell",), leave_out_others=True)
    assert any("4 of 5 annotations left out" in note for note in both.notes)
    assert any("(straße 3, tree 1)" in note for note in both.notes)


def test_a_share_of_the_images_without_objects_is_kept(tmp_path):
    path, images = write(tmp_path, annotation(1))
    assert len(CocoInstances(path, images, empty_share=0.4)) == 1
    source = CocoInstances(path, images, empty_share=0.5, seed=1)
    assert source.object_counts.sum() == 1
    assert len(source) == 2
    again = CocoInstances(path, images, empty_share=0.5, seed=1)
    assert source.ids == again.ids
    assert "1 of 2 images without objects are left out (input.empty_share 0.5)" in source.notes
    drawn = {CocoInstances(path, images, empty_share=0.5, seed=seed).ids for seed in range(9)}
    assert drawn == {("ü é", "b"), ("ü é", "c")}


def test_categories_are_matched_to_the_classes_of_a_run_by_name(tmp_path):
    path, images = write(tmp_path, annotation(1, category=90), annotation(2, image=70))
    source = CocoInstances(path, images, classes=("straße", "tree", "cell"))
    assert [example["classes"].tolist() for example in source] == [[1], [], [3]]
    assert source.category_ids == (90, 91, 7)  # 91 is no category of the file
    assert source.class_counts == (1, 0, 1)
    assert source.notes == ("lists no category for these classes, matched by name: tree",)
    with pytest.raises(
        ValueError,
        match=r"objects.json has categories .*: 'straße' \(1 annotations.* set other_categories to",
    ):
        CocoInstances(path, images, classes=("cell",))
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))
    (note,) = CocoInstances(path, images, classes=("cell",)).notes
    assert note == "categories that are no classes, and that nothing is annotated with: straße"


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
