"""A file in COCO's format is read as a whole, with its images, before anyone trains on it."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data.checks.coco import check_coco
from tests.data.sources.coco_writer import BOX, SIZE, annotation, write

BIG = [[0, 0, 30, 0, 30, 20, 0, 20]]  # the whole image


def listed(number, name):
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}


def test_objects_crowds_boxes_and_sizes_are_counted(tmp_path):
    path, images = write(
        tmp_path,
        annotation(1, area=1023),
        annotation(2, image=9, area=1024),
        annotation(3, category=90, area=9216, bbox=[0, 0, 30, 20], segmentation=BIG),
        annotation(4, category=90, segmentation=[], area=9215),
        annotation(5, image=70, iscrowd=1, area=7),
    )
    sheet = tmp_path / "sheet.png"
    report = check_coco(path, images, contact_sheet=sheet)
    assert report.problems == []
    assert report.class_names == ("background", "cell", "straße")
    split = report.splits["objects"]
    assert split.num_examples == 3
    assert split.images == {"20×30×3 uint8": 3}
    assert split.objects == {1: 3, 2: 2}
    assert split.object_examples == {1: 3, 2: 1}
    assert (split.crowds, split.box_only) == (1, 1)
    assert sorted(split.areas) == [1023, 1024, 9215, 9216]
    text = report.text()
    assert "class   1  3 in 3 examples: cell" in text
    assert "crowds     1" in text
    assert "box only   1 objects without a mask" in text
    assert "no objects 0 of 3 images" in text
    assert "1 small (below 32² pixels), 2 medium, 1 large (from 96²), median 5120 pixels" in text
    assert cv2.imread(str(sheet)) is not None


def test_images_and_classes_without_objects_are_noted(tmp_path):
    report = check_coco(*write(tmp_path, annotation(1)))
    assert report.problems == []
    assert "no object is annotated as: straße" in report.notes
    assert "objects: no objects: 2 of 3 (b, c)" in report.notes
    assert "no objects 2 of 3 images" in report.text()


def test_missing_and_unreadable_images_and_wrong_sizes_are_problems_and_the_rest_is_read(tmp_path):
    path, images = write(tmp_path, annotation(1), annotation(2, image=9))
    (images / "c.png").unlink()
    (images / "b.png").write_bytes(b"no image")
    report = check_coco(path, images)
    assert report.problems[0] == f"1 of 3 images are missing in {images}: c.png"
    assert report.problems[1].startswith(f"{images / 'b.png'}: ")
    assert len(report.problems) == 2
    assert report.splits["objects"].objects == {1: 1}
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(images / "ü é.png")
    problem = check_coco(path, images).problems[1]
    assert f"{images / 'ü é.png'}: size (20, 31), but {path} says (20, 30)" in problem


def test_sizes_that_no_image_gives_do_not_hide_the_other_problems(tmp_path):
    parts = [listed(5, "a.png") | {"height": None}, listed(9, "b.png") | {"height": 0}]
    path, images = write(tmp_path, annotation(1), images=[*parts, listed(70, "c.png")])
    (images / "a.png").unlink()
    report = check_coco(path, images)
    assert report.problems == [f"1 of 3 images are missing in {images}: a.png"]
    assert "2 of 3 images have no size: read from the files" in report.notes
    assert report.splits["objects"].images == {"20×30×3 uint8": 2}


def test_a_file_listed_as_several_images_is_a_problem(tmp_path):
    images = [listed(5, "a.png"), listed(9, "b.png"), listed(70, "./a.png")]
    [problem] = check_coco(*write(tmp_path, annotation(1), images=images)).problems
    assert problem.startswith(f"{tmp_path / 'images' / 'a.png'}: listed as several images")
    assert "5, 70" in problem


def test_the_same_pixels_under_two_names_are_noted(tmp_path):
    path, images = write(tmp_path, annotation(1))
    Image.open(images / "b.png").save(images / "c.png", compress_level=0)
    assert (images / "b.png").read_bytes() != (images / "c.png").read_bytes()
    [note] = [note for note in check_coco(path, images).notes if "same pixels" in note]
    assert note == "the same pixels under several names: objects b = objects c"


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        ({}, True),
        ({"category_id": 90}, False),
        ({"bbox": [2, 3, 10, 4]}, False),
        ({"segmentation": [[2, 3, 12, 3, 12, 7, 2, 8]]}, False),
        ({"image_id": 9}, False),
    ],
)
def test_an_object_listed_twice_is_noted(tmp_path, change, noted):
    path, images = write(tmp_path, annotation(1), annotation(2) | change)
    found = [note for note in check_coco(path, images).notes if "listed twice" in note]
    expected = "objects: an object is listed twice, with the same class, box and mask: 1 of 3 (ü é)"
    assert found == [expected] * noted


def test_boxes_that_do_not_fit_their_masks_are_named(tmp_path):
    wrong = annotation(3, bbox=[15, 10, 10, 5])
    path, images = write(tmp_path, annotation(1), annotation(2, image=9), wrong)
    [note] = [note for note in check_coco(path, images).notes if "does not fit" in note]
    assert note.startswith("1 of 3 annotations")
    assert "annotation 3 has bbox [15, 10, 10, 5]" in note


def test_a_file_that_training_refuses_has_this_as_its_problem(tmp_path):
    x, y, width, height = BOX
    corners = annotation(1, bbox=[x, y, x + width, y + height])
    report = check_coco(*write(tmp_path, corners))
    [problem] = report.problems
    assert "looks like [x_min, y_min, x_max, y_max]" in problem
    assert report.notes == ["no image was read: the file must be mended first"]
    assert "problems: 1" in report.text()


@pytest.mark.parametrize("annotations", [[], [annotation(1, iscrowd=1)]])
def test_a_file_with_nothing_to_learn_is_a_problem(tmp_path, annotations):
    [problem] = check_coco(*write(tmp_path, *annotations)).problems
    assert "there is nothing to learn" in problem


def test_files_that_are_not_listed_are_noted(tmp_path):
    path, images = write(tmp_path, annotation(1))
    Image.new("RGB", (3, 3)).save(images / "new.png")
    notes = check_coco(path, images).notes
    assert f"1 images in {images} are not listed, and not used: new.png" in notes


def test_images_with_an_orientation_are_noted_and_read_as_asked(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "turned.jpg"
    path.write_text(json.dumps(content), encoding="utf-8")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", SIZE[::-1]).save(images / "turned.jpg", exif=exif)
    upright = check_coco(path, images)
    [problem] = upright.problems
    assert "carries EXIF orientation 6 and was turned upright" in problem
    assert any("1 of 3 images carry an EXIF orientation" in note for note in upright.notes)
    stored = check_coco(path, images, orientation="stored")
    assert stored.problems == []
    assert any("it is ignored" in note for note in stored.notes)


def test_files_that_are_not_there_are_named(tmp_path):
    path, images = write(tmp_path, annotation(1))
    with pytest.raises(FileNotFoundError, match="expected annotations in COCO's format"):
        check_coco(tmp_path / "no.json", images)
    with pytest.raises(FileNotFoundError, match="expected the images of"):
        check_coco(path, tmp_path / "no")
    with pytest.raises(ValueError, match=r"should end in \.png"):
        check_coco(path, images, contact_sheet=tmp_path / "sheet.jpg")


def test_coco_itself_has_no_problems(real_data, tmp_path):
    folder = real_data / "coco_mini"
    path = folder / "annotations" / "instances_val2017.json"
    report = check_coco(path, folder / "val2017")
    assert report.problems == []
    [split] = report.splits.values()
    content = json.loads(path.read_text())
    assert split.num_examples == len(content["images"]) == 79
    assert split.objects.total() == len(content["annotations"])
    assert split.crowds == sum(each["iscrowd"] for each in content["annotations"])
