"""Folders as people have them become examples, or problems that name the file."""

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segjax.data.folders.contents import read_folders
from segjax.data.folders.division import DivisionConfig
from segjax.data.folders.mask_format import MaskFormat
from segjax.data.images import match_channels
from segjax.data.sources.catalog import make_builder

WHOLE = DivisionConfig(val_share=0.0)


def labels_of(index):
    """A disc of class 1 and a square of class 2 on 0, at places that depend on the index."""
    rows, columns = np.mgrid[:48, :64]
    labels = np.zeros((48, 64), np.uint8)
    labels[(rows - 15 - index) ** 2 + (columns - 15 - index) ** 2 < 60] = 1
    labels[30:40, 40 + index : 50 + index] = 2
    return labels


def write(folder, convert=lambda labels: Image.fromarray(labels), name="{}.png", image="{}.png"):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(6):
        labels = labels_of(index)
        pixels = np.stack([labels * 90, labels * 40, 255 - labels * 80], axis=2)
        Image.fromarray(pixels).save(folder / "images" / image.format(f"s{index}"))
        convert(labels).save(folder / "masks" / name.format(f"s{index}"))
    return {"train": (folder / "images", folder / "masks")}


COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
BLACK_RED_BLUE = MaskFormat("classes", ("#000000", "#ff0000", "#0080ff"))


@pytest.mark.parametrize(
    ("convert", "given", "expected"),
    [
        (Image.fromarray, None, lambda x: x),
        (lambda x: Image.fromarray(x.astype(np.uint16)), None, lambda x: x),
        (lambda x: Image.fromarray((x > 0).astype(np.uint8) * 255), None, lambda x: x > 0),
        (lambda x: Image.fromarray(x > 0), None, lambda x: x > 0),
        (lambda x: Image.fromarray(COLORS[x]), BLACK_RED_BLUE, lambda x: x),
        (
            lambda x: Image.fromarray(np.where(x == 2, 255, x).astype(np.uint8)),
            None,
            lambda x: np.where(x == 2, 255, x),
        ),
        (
            lambda x: Image.fromarray(x * 100),
            MaskFormat("classes", ("0", "100"), ("200",)),
            lambda x: np.array([0, 1, 255])[x],
        ),
    ],
)
def test_every_form_of_mask_gives_the_same_labels(tmp_path, convert, given, expected):
    contents = read_folders(write(tmp_path, convert), WHOLE, mask_format=given)
    assert not contents.problems
    source = contents.sources["train"]
    assert (len(source), contents.channels) == (6, 3)
    for index in range(6):
        example = source[index]
        assert example["id"] == f"s{index}"
        assert example["image"].shape == (48, 64, 3)
        np.testing.assert_array_equal(example["labels"], expected(labels_of(index)))
    counted = {x: n for x, n in contents.pixels.items() if n}
    drawn = np.concatenate([expected(labels_of(index)).ravel() for index in range(6)])
    assert counted == dict(
        zip(*map(np.ndarray.tolist, np.unique(drawn.astype(int), return_counts=True)), strict=True)
    )


def test_numbered_objects(tmp_path):
    places = write(tmp_path, lambda x: Image.fromarray(x.astype(np.uint16) * 400))
    contents = read_folders(places, WHOLE)
    assert contents.mask_format.holds == "instances"
    source = contents.sources["train"]
    assert source.object_counts.tolist() == [2] * 6
    assert source.sizes.tolist() == [[48, 64]] * 6
    np.testing.assert_array_equal(source[1]["instances"], labels_of(1).astype(int) * 400)
    np.testing.assert_array_equal(source[1]["labels"], labels_of(1) > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "masks/s2.png").unlink(), r"1 image without a mask.*s2.png"),
        (lambda f: (f / "images/s2.png").unlink(), r"1 mask without an image.*s2.png"),
        (lambda f: (f / "masks/s2.png").write_bytes(b"x"), r"s2.png: damaged"),
        (
            lambda f: Image.fromarray(labels_of(2) // 2 * 7 + labels_of(2)).save(
                f / "masks/s2.png"
            ),
            r"Only .*s2.png has 9: an error there\?",
        ),
    ],
)
def test_each_fault_is_a_problem_that_names_the_file(tmp_path, change, message):
    places = write(tmp_path)
    change(tmp_path)
    contents = read_folders(places, WHOLE)
    assert len(contents.problems) == 1
    assert re.search(message, contents.problems[0])


def test_values_that_a_given_format_does_not_name(tmp_path):
    places = write(tmp_path)
    contents = read_folders(places, WHOLE, mask_format=MaskFormat("classes", ("0", "1")))
    assert len(contents.problems) == 6
    assert "s0.png: value 2 of no class; --values" in contents.problems[0]
    coloured = write(tmp_path / "c", lambda x: Image.fromarray(COLORS[x]))
    contents = read_folders(coloured, WHOLE, mask_format=MaskFormat("classes", ("0", "1")))
    assert "s0.png: it has colours, but --values are numbers" in contents.problems[0]
    some = MaskFormat("classes", ("#000000", "#ff0000"))
    contents = read_folders(coloured, WHOLE, mask_format=some)
    assert "s0.png: colour #0080ff of no class" in contents.problems[0]


def test_unmatched_files_may_be_left_out(tmp_path):
    places = write(tmp_path)
    (tmp_path / "masks" / "s2.png").unlink()
    contents = read_folders(places, WHOLE, skip_unmatched=True)
    assert not contents.problems
    assert any("s2.png" in note for note in contents.notes)
    assert [pair.id for pair in contents.sources["train"].pairs] == ["s0", "s1", "s3", "s4", "s5"]


def test_sizes_that_differ_are_found_by_the_headers(tmp_path):
    places = write(tmp_path, lambda x: Image.fromarray(x[::2, ::2]), image="{}.jpg")
    source = read_folders(places, WHOLE).sources["train"]
    problems = source.file_problems()
    assert [*problems] == [*range(6)]
    assert re.search("s0.jpg is 48 × 64 pixels.*s0.png 24 × 32. Was one", problems[0])
    with pytest.raises(ValueError, match="Was one of them resized"):
        source[0]
    assert not read_folders(write(tmp_path / "a"), WHOLE).sources["train"].file_problems()


def test_a_turned_image_fits_its_upright_mask_and_one_drawn_on_the_bitmap_names_the_switch(
    tmp_path,
):
    places = write(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.array(Image.open(tmp_path / "images" / "s0.png"))
    stored = np.rot90(upright)  # tag 6 turns it back
    Image.fromarray(stored).save(tmp_path / "images" / "s0.png", exif=exif)
    source = read_folders(places, WHOLE).sources["train"]
    assert not source.file_problems()
    np.testing.assert_array_equal(source[0]["image"], upright)
    Image.fromarray(np.rot90(labels_of(0))).save(tmp_path / "masks" / "s0.png")
    source = read_folders(places, WHOLE).sources["train"]
    assert "EXIF orientation 6" in source.file_problems()[0]
    assert "--orientation to stored" in source.file_problems()[0]
    as_stored = read_folders(places, WHOLE, orientation="stored").sources["train"]
    assert not as_stored.file_problems()
    np.testing.assert_array_equal(as_stored[0]["image"], stored)


def test_grey_and_coloured_images_become_alike(tmp_path):
    places = write(tmp_path)
    Image.fromarray(labels_of(0)).save(tmp_path / "images" / "s0.png")
    contents = read_folders(places, WHOLE)
    assert contents.sources["train"][0]["image"].shape == (48, 64, 3)
    assert "1 of 6 images are grey; they are read as RGB" in contents.notes
    grey = read_folders(places, WHOLE, channels=1)
    assert grey.sources["train"][1]["image"].shape == (48, 64, 1)


@pytest.mark.parametrize(
    ("dtype", "bands", "read_as"),
    [
        (np.uint16, 1, np.uint16),
        (np.int32, 2, np.float32),
        (np.float32, 4, np.float32),
        (np.uint8, 5, np.uint8),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_images_of_any_bands_and_types(tmp_path, dtype, bands, read_as, suffix):
    places = write(tmp_path)
    pixels = (np.arange(48 * 64 * bands).reshape(48, 64, bands) % 251).astype(dtype)
    for index in range(6):
        (tmp_path / "images" / f"s{index}.png").unlink()
        path = tmp_path / "images" / f"s{index}.{suffix}"
        if suffix == "npy":
            np.save(path, pixels)
        else:
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    contents = read_folders(places, WHOLE)
    assert not contents.problems
    assert contents.channels == bands
    image = contents.sources["train"][2]["image"]
    assert image.dtype == read_as
    np.testing.assert_array_equal(image, pixels)
    assert not contents.sources["train"].file_problems()
    np.save(tmp_path / "images" / f"s0.{suffix}", pixels[..., :1].repeat(6, axis=2))
    if suffix == "npy":
        problems = read_folders(places, WHOLE).problems
        assert "the images differ in their bands" in problems[0]


def test_splits_with_folders_of_their_own(tmp_path):
    places = write(tmp_path) | {"val": write(tmp_path / "v")["train"]}
    contents = read_folders(places, DivisionConfig(test_share=0.34))
    assert {name: len(source) for name, source in contents.sources.items()} == {
        "train": 4,
        "val": 6,
        "test": 2,
    }
    before = contents.digest
    assert before.startswith("4 train, 6 val, 2 test (")
    assert read_folders(places, DivisionConfig(test_share=0.34)).digest == before
    assert read_folders(places, DivisionConfig(test_share=0.34, split_seed=3)).digest != before


def test_a_changed_mask_is_read_again(tmp_path):
    places = write(tmp_path)
    assert len(read_folders(places, WHOLE).mask_format.values) == 3
    for index in range(6):
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "masks" / f"s{index}.png")
    assert len(read_folders(places, WHOLE).mask_format.values) == 2


def test_real_folders(real_data):
    for images, masks, holds, count in (
        ("camvid/train", "camvid/trainannot", "classes", 367),
        ("drive/training/images", "drive/training/1st_manual", "classes", 20),
        ("dsb2018/images", "dsb2018/labels", "instances", 664),
    ):
        contents = read_folders({"train": (real_data / images, real_data / masks)}, WHOLE)
        assert not contents.problems
        assert (contents.mask_format.holds, len(contents.sources["train"])) == (holds, count)
        example = contents.sources["train"][3]
        assert example["labels"].shape == example["image"].shape[:2]


@pytest.mark.parametrize(
    ("name", "source", "split", "images", "masks", "given"),
    [
        ("drive", "drive", "train", "training/images", "training/1st_manual", None),
        ("drive", "drive", "test", "testing/images", "testing/1st_manual", None),
        (
            *("camvid", "camvid", "val", "val", "valannot"),
            MaskFormat("classes", tuple(map(str, range(11))), ("11",)),
        ),
    ],
)
def test_real_folders_give_the_examples_of_the_catalogue(
    real_data, name, source, split, images, masks, given
):
    """In the same order, so that a run on the folders is the run on the prepared data set."""
    builder = make_builder(name, data_dir=Path("nowhere"))
    listed = builder.find_examples(real_data / source).splits[split]
    places = {"train": (real_data / source / images, real_data / source / masks)}
    contents = read_folders(places, WHOLE, mask_format=given)
    assert not contents.problems
    found = contents.sources["train"]
    assert len(found) == len(listed)
    for number, files in enumerate(listed):
        example, own = builder.read_example(files), found[number]
        np.testing.assert_array_equal(own["image"], example["image"])
        np.testing.assert_array_equal(own["labels"], example["labels"])


def test_real_masks_of_nuclei_give_the_instances_of_the_catalogue(real_data):
    builder = make_builder("dsb2018", data_dir=Path("nowhere"))
    listing = builder.find_examples(real_data / "dsb2018").splits
    listed = {files.id: files for files in (*listing["train"], *listing["test"])}
    places = {"train": (real_data / "dsb2018" / "images", real_data / "dsb2018" / "labels")}
    found = read_folders(places, WHOLE).sources["train"]
    assert {pair.id for pair in found.pairs} == {*listed}
    for number in range(0, len(found), 20):
        example, own = builder.read_example(listed[found.pairs[number].id]), found[number]
        np.testing.assert_array_equal(own["instances"], example["instances"])
        np.testing.assert_array_equal(own["image"], match_channels(example["image"], 3))
