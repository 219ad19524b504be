"""Images and masks find each other by name, and doubtful names are refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.data.folders.pairing import pair_folders
from segjax.data.images import natural


def make(folder: Path, *names: str, kind: str = "images") -> Path:
    for name in names:
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return folder / kind


def pairs(tmp_path, images, masks, **options):
    folders = make(tmp_path, *images), make(tmp_path, *masks, kind="masks")
    found = pair_folders(*folders, **options)
    names = [(pair.image.name, pair.mask.name) for pair in found.pairs]
    return found, names


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a1.png", "a10.png", "b.png"], ["a1.png", "a10.png", "b.png"]),
        (["a1.jpg", "a10.png", "b.tif"], ["a1.png", "a10.gif", "b.bmp"]),
        (["a1.jpg", "a10.jpg", "b.jpg"], ["a1_mask.png", "a10_mask.png", "b_mask.png"]),
        (["a1.png", "a10.png", "b.png"], ["mask_a1.png", "mask_a10.png", "mask_b.png"]),
        (["1_image.png", "10_image.png"], ["1_label.png", "10_label.png"]),
        (["21_training.tif", "22_training.tif"], ["21_manual1.gif", "22_manual1.gif"]),
        (["img1.png", "img10.png"], ["label1.png", "label10.png"]),
        (["t000.tif", "t001.tif"], ["man_seg000.tif", "man_seg001.tif"]),
        (["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
        (["x/a.png", "y/b.png"], ["a.png", "b.png"]),
        (["one.png"], ["one_mask.png"]),
    ],
)
def test_each_image_finds_its_mask(tmp_path, images, masks):
    found, names = pairs(tmp_path, images, masks)
    assert names == [(Path(a).name, Path(b).name) for a, b in zip(images, masks, strict=True)]
    assert not found.describe_unmatched()


def test_a_number_behind_the_name_belongs_to_another_image(tmp_path):
    found, names = pairs(tmp_path, ["img1.png", "img2.png"], ["img1_m.png", "img10_m.png"])
    assert names == [("img1.png", "img1_m.png")]
    assert [path.name for path in found.unmatched_images] == ["img2.png"]
    assert [path.name for path in found.unmatched_masks] == ["img10_m.png"]


def test_files_without_a_partner_are_listed(tmp_path):
    found, _ = pairs(tmp_path, ["a.png", "b.png", "c.png"], ["b.png", "c.png", "d.png"])
    first, second = found.describe_unmatched()
    assert re.match("1 image without a mask.*a.png", first)
    assert re.match("1 mask without an image.*d.png", second)


def test_one_folder_needs_the_suffix_and_names_those_it_has(tmp_path):
    folder = make(tmp_path, "a.jpg", "a_one.png", "a_two.png", "b.jpg", "b_one.png", "b_two.png")
    with pytest.raises(ValueError, match=r"--mask-suffix.*_one, _two"):
        pair_folders(folder, folder)
    found = pair_folders(folder, folder, suffix="_one")
    assert [pair.mask.name for pair in found.pairs] == ["a_one.png", "b_one.png"]
    assert [path.name for path in found.others] == ["a_two.png", "b_two.png"]
    assert not found.describe_unmatched()


def test_two_possible_masks_are_refused_until_the_suffix_chooses(tmp_path):
    images, masks = ["a.png", "b.png"], ["a_x.png", "a_y.png", "b_x.png", "b_y.png"]
    with pytest.raises(ValueError, match="IMAGE_x, masks are named IMAGE_y; choose by --mask-suf"):
        pairs(tmp_path, images, masks)
    _, names = pairs(tmp_path, images, masks, suffix="_y")
    assert names == [("a.png", "a_y.png"), ("b.png", "b_y.png")]


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (["a.png"], ["b.png"], "no mask fits an image by its name.*like a.png.*like b.png"),
        (["a.png"], ["a.png", "a.bmp"], "has several masks: .*a.bmp, .*a.png"),
        (["a.png", "a.jpg"], ["a.png"], "fits several images"),
    ],
)
def test_names_that_do_not_lead_to_one_mask_are_refused(tmp_path, images, masks, message):
    with pytest.raises(ValueError, match=message):
        pairs(tmp_path, images, masks)


def test_missing_and_empty_folders_are_named(tmp_path):
    images = make(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder, but there is none"):
        pair_folders(images, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a.png: expected a folder, but it is a file"):
        pair_folders(images / "a.png", images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no masks in this folder"):
        pair_folders(images, tmp_path / "empty")


def test_hidden_files_are_not_read(tmp_path):
    _, names = pairs(tmp_path, ["a.png", "._a.png", ".old/a.png"], ["a.png"])
    assert names == [("a.png", "a.png")]


def test_each_page_of_two_tiffs_is_a_pair(tmp_path):
    pages = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(3)]
    for kind, count in (("images", 3), ("masks", 3), ("short", 2)):
        (tmp_path / kind).mkdir()
        pages[0].save(tmp_path / kind / "s.tif", save_all=True, append_images=pages[1:count])
    found = pair_folders(tmp_path / "images", tmp_path / "masks")
    assert [(pair.id, pair.page) for pair in found.pairs] == [("s#1", 0), ("s#2", 1), ("s#3", 2)]
    with pytest.raises(ValueError, match=r"has 3 pages and its mask .* 2"):
        pair_folders(tmp_path / "images", tmp_path / "short")


def test_frame_2_comes_before_frame_10():
    assert sorted(["f10", "f2", "F1"], key=natural) == ["F1", "f2", "f10"]
