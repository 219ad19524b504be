"""EXIF orientation: images are upright or stored by one rule, and the tags are said."""

import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.data import orientation
from segjax.data.images import read_image
from segjax.data.label_maps import read_stored_values
from segjax.data.orientation import explain_size, note_turned, read_tag, turn

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
TAGS = range(1, 9)


def exif_of(tag):
    exif = Image.Exif()
    exif[274] = tag
    return exif


def insert_chunk(path, tag, *, late):
    """Adds EXIF to a PNG, before its pixels or behind them."""
    content, exif = path.read_bytes(), exif_of(tag).tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    place = len(content) - 12 if late else 33
    path.write_bytes(content[:place] + chunk + content[place:])


@pytest.mark.parametrize("tag", TAGS)
def test_an_upright_image_is_as_opencv_shows_it_and_a_stored_one_is_the_bitmap(tmp_path, tag):
    for name in ("a.png", "a.tif", "a.webp"):
        path = tmp_path / name
        options = {"lossless": True} if name == "a.webp" else {}
        Image.fromarray(RGB).save(path, exif=exif_of(tag), **options)
        found = read_image(path)
        if name == "a.png":  # OpenCV fails on some tags of the others
            np.testing.assert_array_equal(found, cv2.imread(str(path))[..., ::-1])
        np.testing.assert_array_equal(found, turn(RGB, tag))
        np.testing.assert_array_equal(read_image(path, orientation="stored"), RGB)
        np.testing.assert_array_equal(turn(found, tag, back=True), RGB)
    blocks = np.kron(np.array([[0, 80, 40], [160, 240, 200]], np.uint8), np.ones((16, 16), "u1"))
    Image.fromarray(blocks).save(tmp_path / "a.jpg", exif=exif_of(tag))
    for way, flag in (
        ("upright", cv2.IMREAD_GRAYSCALE),
        ("stored", cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION),
    ):
        found = read_image(tmp_path / "a.jpg", orientation=way)[..., 0]
        np.testing.assert_allclose(found, cv2.imread(str(tmp_path / "a.jpg"), flag), atol=2)


@pytest.mark.parametrize("tag", TAGS)
def test_sixteen_bits_are_turned_too(tmp_path, tag):
    colour = RGB.astype(np.uint16) * 200
    cv2.imwrite(str(tmp_path / "colour.png"), colour[..., ::-1])
    insert_chunk(tmp_path / "colour.png", tag, late=False)
    Image.fromarray(colour[..., 0]).save(tmp_path / "grey.tif", exif=exif_of(tag))
    for name, pixels in (("colour.png", colour), ("grey.tif", colour[..., :1])):
        np.testing.assert_array_equal(read_image(tmp_path / name), turn(pixels, tag))
        found = read_image(tmp_path / name, orientation="stored")
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("late", [False, True])
def test_a_tag_is_found_wherever_it_stands(tmp_path, late):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    assert read_tag(path) == 1
    insert_chunk(path, 6, late=late)
    assert read_tag(path) == 6
    np.testing.assert_array_equal(read_image(path), turn(RGB, 6))


def test_a_png_is_not_decoded_for_its_tag(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    decoded = []
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded.append)
    for tag in (3, 1):
        Image.new("L", (3, 4)).save(path, exif=exif_of(tag))
        assert read_tag(path) == tag
    assert decoded == []


def test_what_has_no_tag_with_a_meaning_counts_as_untagged(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif_of(9))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    Image.fromarray(RGB).save(tmp_path / "c.bmp")
    assert [read_tag(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.bmp", "none.jpg")] == [
        1
    ] * 4


def test_a_label_map_is_turned_by_its_own_tag(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "a.png", exif=exif_of(6))
    np.testing.assert_array_equal(read_stored_values(tmp_path / "a.png"), turn(RGB[..., 0], 6))


def test_one_note_counts_the_tagged_images_and_names_rule_and_switch(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for path, tag in zip(paths, (1, 1, 3, 6, 1), strict=True):
        Image.fromarray(RGB).save(path, exif=exif_of(tag))
    (note,) = note_turned(paths, setting="--switch")
    assert note.startswith("2 of 5 images carry an EXIF orientation, such as 2.jpg (3): they are")
    assert "upright" in note
    assert note.endswith("set --switch to stored")
    (note,) = note_turned(paths, orientation="stored", setting="--switch")
    assert "it is ignored" in note
    assert note_turned(paths[:2], setting="--switch") == note_turned([]) == []
    monkeypatch.setattr(orientation, "FILES_NOTED", 3)  # the first, the middle and the last
    assert note_turned(paths)[0].startswith("1 of 3 images looked at carry")


def test_a_wrong_size_is_explained_by_a_tag_alone(tmp_path):
    path = tmp_path / "a.jpg"
    for tag, found, expected, setting, reason in (
        (6, (7, 5), (5, 7), "--switch", "EXIF orientation 6 .* stored bitmap. Set --switch to"),
        (6, (7, 5), (5, 7), None, "Save the image upright"),
        (6, (7, 5), (5, 8), "--switch", "^$"),
        (3, (7, 5), (5, 7), "--switch", "^$"),
        (1, (7, 5), (5, 7), "--switch", "^$"),
    ):
        Image.fromarray(RGB).save(path, exif=exif_of(tag))
        assert re.search(reason, explain_size(path, found, expected, setting=setting))
    Image.fromarray(RGB).save(path, exif=exif_of(8))
    text = explain_size(path, (5, 7), (7, 5), orientation="stored", setting="--switch")
    assert "read as it is stored" in text
    assert text.endswith("Set --switch to upright")
