"""CamVid, VOC 2012, Cityscapes, ADE20K, and COCO with VOC's classes."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from segjax.coco.masks import draw_segmentation
from segjax.data.checks.check import check
from segjax.data.datasets.coco_voc.coco_voc_dataset_builder import CLASS_OF_CATEGORY
from segjax.data.datasets.voc2012.voc2012_dataset_builder import read_sbd_labels
from segjax.data.prepare import prepare
from segjax.data.sources.catalog import make_builder
from segjax.data.sources.splits import prepared_splits
from tests.data import official_layouts

WRITERS = {
    "camvid": official_layouts.write_camvid,
    "voc2012": official_layouts.write_voc2012,
    "voc2012, SBD as PNG": partial(official_layouts.write_voc2012, sbd="png"),
    "voc2012, no SBD": partial(official_layouts.write_voc2012, sbd=None),
    "cityscapes": official_layouts.write_cityscapes,
    "coco_voc": official_layouts.write_coco_voc,
    "ade20k": official_layouts.write_ade20k,
}


def check_files(name, source):
    return check(name, source=source, data_dir=source)


def read_files(name, source):
    """The examples that a builder reads from a source folder."""
    builder = make_builder(name, data_dir=source)
    listing = builder.find_examples(source)
    assert listing.problems == []
    return {
        split: [builder.read_example(files) for files in examples]
        for split, examples in listing.splits.items()
    }


@pytest.mark.parametrize("layout", WRITERS)
def test_a_layout_is_read_in_full_without_problems(layout, tmp_path):
    name = layout.partition(",")[0]
    expected = WRITERS[layout](tmp_path)
    assert check_files(name, tmp_path).problems == []
    found = read_files(name, tmp_path)
    assert found.keys() == expected.keys()
    for split, examples in expected.items():
        assert [example["id"] for example in found[split]] == [e["id"] for e in examples]
        for example, other in zip(found[split], examples, strict=True):
            np.testing.assert_array_equal(example["image"], other["image"])
            np.testing.assert_array_equal(example["labels"], other["labels"])
            assert example["labels"].dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "classes", "some"),
    [
        ("camvid", 11, {0: "sky", 3: "road", 10: "bicyclist"}),
        ("voc2012", 21, {0: "background", 15: "person", 20: "tvmonitor"}),
        ("coco_voc", 21, {0: "background", 15: "person", 20: "tvmonitor"}),
        ("cityscapes", 19, {0: "road", 13: "car", 18: "bicycle"}),
        ("ade20k", 150, {0: "wall", 12: "person", 149: "flag"}),
        ("oxford_iiit_pet", 3, {0: "pet", 1: "background"}),
    ],
)
def test_class_names_are_known_without_any_files(name, classes, some):
    splits = prepared_splits(name, data_dir=Path("unused"))
    names, channels = splits.classes, splits.channels
    assert len(names) == len(set(names)) == classes
    assert {index: names[index] for index in some} == some
    assert channels == 3


@pytest.mark.parametrize(
    ("name", "image", "labels", "unpaired"),
    [
        ("camvid", "val/val_02.png", "testannot/test_00.png", "no image of this name"),
        (
            "ade20k",
            "images/training/ADE_train_00000001.jpg",
            "annotations/validation/ADE_val_00000003.png",
            "no image of this name",
        ),
        (
            "cityscapes",
            "leftImg8bit/train/b/b_000001_000019_leftImg8bit.png",
            "gtFine/val/c/c_000000_000019_gtFine_labelIds.png",
            "no image of this name",
        ),
    ],
)
def test_images_without_labels_and_labels_without_images_are_named(
    name, image, labels, unpaired, tmp_path
):
    WRITERS[name](tmp_path)
    (tmp_path / image).unlink()
    (tmp_path / labels).unlink()
    problems = check_files(name, tmp_path).problems
    assert len(problems) == 2
    assert any(unpaired in problem for problem in problems)
    assert any(problem.startswith(f"{tmp_path / labels}: missing") for problem in problems)


@pytest.mark.parametrize("name", ["camvid", "voc2012", "cityscapes", "coco_voc", "ade20k"])
def test_an_empty_folder_is_refused_with_what_was_expected(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} is not prepared.*\n.*(missing|no )"):
        prepare(name, source=tmp_path, data_dir=tmp_path / "data")


def test_sets_that_are_not_whole_are_noted_with_the_published_number(tmp_path):
    official_layouts.write_camvid(tmp_path)
    notes = check_files("camvid", tmp_path).notes
    assert "train: 4 examples, published are 367" in notes


def test_files_of_other_types_are_noted(tmp_path):
    official_layouts.write_camvid(tmp_path)
    (tmp_path / "val" / "list.txt").touch()
    (tmp_path / "valannot" / "a.jpg").touch()
    notes = check_files("camvid", tmp_path).notes
    assert any("val are no images, skipped: list.txt" in note for note in notes)
    assert any("valannot are no PNG label maps, skipped: a.jpg" in note for note in notes)


@pytest.mark.parametrize("tag", [3, 6])
def test_images_with_an_orientation_are_noted_and_explained(tmp_path, tag):
    official_layouts.write_camvid(tmp_path)
    path = sorted((tmp_path / "val").glob("*.png"))[0]
    exif = Image.Exif()
    exif[274] = tag
    Image.open(path).copy().save(path, exif=exif)
    report = check_files("camvid", tmp_path)
    (note,) = (note for note in report.notes if "EXIF" in note)
    assert f"such as {path.name} ({tag}): they are turned upright" in note
    explained = [problem for problem in report.problems if "Save the image upright" in problem]
    assert len(explained) == (tag == 6)


@pytest.mark.parametrize(
    ("name", "path", "value", "expected"),
    [
        ("camvid", "trainannot/train_01.png", 12, "0 to 11"),
        ("voc2012", "VOCdevkit/VOC2012/SegmentationClass/2007_02.png", 21, "0 to 20, 255"),
        ("cityscapes", "gtFine/val/a/a_000000_000019_gtFine_labelIds.png", 255, "0 to 33"),
        ("ade20k", "annotations/training/ADE_train_00000002.png", 151, "0 to 150"),
    ],
)
def test_label_values_of_another_format_are_named_with_their_file(
    name, path, value, expected, tmp_path
):
    WRITERS[name](tmp_path)
    Image.fromarray(np.full(official_layouts.SIZE, value, np.uint8)).save(tmp_path / path)
    [problem] = check_files(name, tmp_path).problems
    assert problem == f"{tmp_path / path}: value {value}; expected {expected}"


def test_colours_in_place_of_vocs_palette_are_named_with_their_file(tmp_path):
    official_layouts.write_voc2012(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2009_01.png"
    Image.open(path).convert("RGB").save(path)
    [problem] = check_files("voc2012", tmp_path).problems
    assert problem.startswith(f"{path}: ")
    assert "found colours" in problem


def test_labels_of_another_size_than_their_image_are_named(tmp_path):
    official_layouts.write_camvid(tmp_path)
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "testannot" / "test_01.png")
    assert check_files("camvid", tmp_path).problems == [
        "test test_01: labels has size 5×6, the image 20×24"
    ]


def test_camvid_reads_jpeg_images_too(tmp_path):
    expected = official_layouts.write_camvid(tmp_path, suffix=".jpg")
    found = read_files("camvid", tmp_path)
    np.testing.assert_array_equal(found["val"][3]["image"], expected["val"][3]["image"])


def test_two_images_of_one_name_are_a_problem(tmp_path):
    official_layouts.write_camvid(tmp_path)
    Image.open(tmp_path / "val" / "val_01.png").save(tmp_path / "val" / "val_01.JPG", "JPEG")
    [problem] = check_files("camvid", tmp_path).problems
    assert problem == f"{tmp_path / 'val' / 'val_01.png'}: val_01.JPG has the same name"


def test_a_split_without_examples_is_a_problem(tmp_path):
    official_layouts.write_voc2012(tmp_path)
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("")
    assert check_files("voc2012", tmp_path).problems == [f"{tmp_path}: no examples of val"]


def test_only_the_commonest_of_many_image_sizes_are_listed(tmp_path):
    official_layouts.write_camvid(tmp_path)
    report = check_files("camvid", tmp_path)
    assert "other sizes" not in report.text()
    report.splits["train"].images.update({f"{height}×9×3 uint8": 1 for height in range(9)})
    assert "    images     20×24×3 uint8 (4), 0×9×3 uint8 (1), " in report.text()
    assert ", 4 other sizes, values 0 to 255" in report.text()


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_is_found_from_inside_its_folders(inside, tmp_path):
    official_layouts.write_voc2012(tmp_path, sbd="png")
    assert len(read_files("voc2012", tmp_path / inside)["train_aug"]) == 6


def test_no_image_of_vocs_validation_is_in_the_augmented_training_set(tmp_path):
    official_layouts.write_voc2012(tmp_path)
    listing = make_builder("voc2012", data_dir=tmp_path).find_examples(tmp_path)
    names = {split: {files.id for files in examples} for split, examples in listing.splits.items()}
    assert names["train"] < names["train_aug"]
    assert not names["val"] & names["train_aug"]


def test_voc_without_sbd_says_what_is_missing_for_the_augmented_set(tmp_path):
    official_layouts.write_voc2012(tmp_path, sbd=None)
    report = check_files("voc2012", tmp_path)
    assert "train_aug" not in report.splits
    assert any("so there is no train_aug" in note for note in report.notes)


def test_a_missing_file_of_voc_is_one_problem_whatever_its_splits(tmp_path):
    official_layouts.write_voc2012(tmp_path)
    missing = tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_03.jpg"
    missing.unlink()
    [problem] = check_files("voc2012", tmp_path).problems
    assert problem.startswith(f"{missing}: missing")


def test_vocs_test_images_have_no_labels(tmp_path):
    official_layouts.write_voc2012(tmp_path)
    lists = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "test.txt").write_text("2010_05\n")
    [example] = read_files("voc2012", tmp_path)["test"]
    assert example["id"] == "2010_05"
    assert (example["labels"] == 255).all()


@pytest.mark.parametrize(
    "content", [b"", b"no MATLAB", {"GTinst": 1}, {"GTcls": {"Boundaries": 1}}]
)
def test_files_that_are_not_of_sbd_are_refused_by_name(content, tmp_path):
    path = tmp_path / "2008_000002.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(ValueError, match=r"2008_000002\.mat: damaged, or without the field"):
        read_sbd_labels(path)


def test_cityscapes_goes_city_by_city_and_has_no_labels_in_test(tmp_path):
    official_layouts.write_cityscapes(tmp_path)
    found = read_files("cityscapes", tmp_path)
    assert [example["id"][:8] for example in found["train"]] == [
        "b_000000",
        "b_000001",
        "z_000000",
        "z_000001",
    ]
    assert all((example["labels"] == 255).all() for example in found["test"])


def test_cityscapes_without_test_images_is_prepared_without_that_split(tmp_path):
    official_layouts.write_cityscapes(tmp_path)
    for path in sorted((tmp_path / "leftImg8bit" / "test").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "leftImg8bit" / "test").rmdir()
    report = check_files("cityscapes", tmp_path)
    assert report.problems == []
    assert list(report.splits) == ["train", "val"]
    assert any("no test split" in note for note in report.notes)


def edit_annotations(folder, change):
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_coco_trains_only_on_images_with_more_than_1000_pixels_of_vocs_classes(tmp_path):
    official_layouts.write_coco_voc(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    of_vocs = [a for a in content["annotations"] if a["category_id"] in CLASS_OF_CATEGORY]
    for annotation in of_vocs:
        annotation["area"] = 0
    of_vocs[0]["area"], of_vocs[-1]["area"] = 1000, 1000.5
    path.write_text(json.dumps(content))
    splits = make_builder("coco_voc", data_dir=tmp_path).find_examples(tmp_path).splits
    last = of_vocs[-1]["image_id"]
    assert [files.id for files in splits["train"]] == [f"{last:012d}"]
    assert len(splits["val"]) == 3


def test_coco_annotations_of_other_categories_are_refused(tmp_path):
    official_layouts.write_coco_voc(tmp_path)
    path = edit_annotations(tmp_path, lambda content: content["categories"][4].update(name="kite"))
    [problem] = check_files("coco_voc", tmp_path).problems
    assert problem == f"{path}: category 5 is 'kite'; COCO's is 'airplane'"


def test_coco_annotations_that_are_damaged_are_refused(tmp_path):
    official_layouts.write_coco_voc(tmp_path)
    path = edit_annotations(tmp_path, lambda content: content.pop("images"))
    [problem] = check_files("coco_voc", tmp_path).problems
    assert problem == f"{path}: not the instances of COCO (KeyError('images'))"


def test_coco_images_of_another_size_than_their_annotations_are_named(tmp_path):
    official_layouts.write_coco_voc(tmp_path)
    path = edit_annotations(tmp_path, lambda content: content["images"][0].update(height=61))
    [problem] = check_files("coco_voc", tmp_path).problems
    image = tmp_path / "val2017" / "000000000030.jpg"
    assert problem == f"{image}: size (60, 80), but {path} says (61, 80)"


def test_coco_segmentations_of_another_form_are_named(tmp_path):
    official_layouts.write_coco_voc(tmp_path)
    path = edit_annotations(
        tmp_path, lambda content: content["annotations"][0].update(segmentation=[[1, 2]])
    )
    [problem] = check_files("coco_voc", tmp_path).problems
    assert problem.startswith(f"{path}: image 000000000030: expected a polygon")


def test_real_coco_images_have_the_labels_that_torchvision_makes(real_data, tmp_path):
    builder = make_builder("coco_voc", data_dir=tmp_path)
    listing = builder.find_examples(real_data / "coco_mini")
    assert listing.problems == []
    assert {split: len(files) for split, files in listing.splits.items()} == {
        "train": 62,
        "val": 79,
    }
    path = real_data / "coco_mini" / "annotations" / "instances_train2017.json"
    annotations = json.loads(path.read_text())["annotations"]
    for files in listing.splits["train"][:20]:
        example = builder.read_example(files)
        masks = [
            draw_segmentation(annotation["segmentation"], example["labels"].shape)
            * CLASS_OF_CATEGORY[annotation["category_id"]]
            for annotation in annotations
            if annotation["image_id"] == int(files.id)
            and annotation["category_id"] in CLASS_OF_CATEGORY
        ]
        expected = np.max(masks, axis=0)
        expected[np.count_nonzero(masks, axis=0) > 1] = 255
        np.testing.assert_array_equal(example["labels"], expected)


def test_real_camvid_has_its_published_splits_and_eleven_classes(real_data, tmp_path):
    builder = make_builder("camvid", data_dir=tmp_path)
    listing = builder.find_examples(real_data / "camvid")
    assert listing.problems == listing.notes == []
    for examples in listing.splits.values():
        example = builder.read_example(examples[0])
        assert example["image"].shape == (*builder.official_size, 3)
        assert set(np.unique(example["labels"])) <= {*range(11), 255}
