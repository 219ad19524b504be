"""The image files of a JSON file in COCO's format: missing, damaged, turned or of another size."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.coco.masks import paste_mask
from segjax.data.sources import coco_files
from segjax.data.sources.coco_files import CocoInstances
from tests.data.sources.coco_writer import SIZE, annotation, drawn, without_sizes, write


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


def test_a_file_that_is_several_images_is_noted(tmp_path):
    path, images = write(tmp_path, annotation(1))
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = content["images"][2]["file_name"]
    path.write_text(json.dumps(content))
    repeated, unused = CocoInstances(path, images).notes
    assert repeated.startswith("1 files are listed as several images, such as 'b.png'")
    assert unused.startswith("1 images in ")


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
    source = CocoInstances(path, images, empty_share=0.0)
    assert source.notes[1:] == (
        f"1 of 6 files in {images} are no images, skipped: notes.txt",
        f"1 images in {images} are not listed, and not used: z.png",
    )


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


def test_images_that_stand_upright_by_their_tag_hide_no_wrong_one(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_files, "SUSPECTS_DECODED", 1)
    path, images = turned_by_exif(tmp_path, 6)
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["height"], image["width"] = SIZE[::-1]
    content["annotations"] = []
    path.write_text(json.dumps(content))
    source = CocoInstances(path, images)
    assert source.file_problems() == {}
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(images / "70.png")
    assert set(source.file_problems()) == {2}
