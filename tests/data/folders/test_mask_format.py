"""What masks hold is found where it is sure, and refused where it could be two things."""

import re
from pathlib import Path

import numpy as np
import pytest

from segjax.data.folders.found_format import find_format
from segjax.data.folders.mask_format import (
    MaskFacts,
    MaskFormat,
    pack_colors,
    read_color_table,
)


def facts(*masks, colors=False):
    """Facts of masks that are given as lists of their values."""
    return [
        MaskFacts(Path(f"m{i}.png"), (1, len(values)), colors, dict.fromkeys(values, 1))
        for i, values in enumerate(masks)
    ]


@pytest.mark.parametrize(
    ("masks", "holds", "values"),
    [
        ([[0, 1], [0]], "classes", ("0", "1")),
        ([[0, 255], [0]], "classes", ("0", "255")),
        ([[0, 1, 2], [0, 2]], "classes", ("0", "1", "2")),
        ([[0, 1, 2, 255]], "classes", ("0", "1", "2")),
        ([[0, 1, 255]], "classes", ("0", "1")),
        ([[0]], "classes", ("0", "1")),
        ([[0, 1, 2, 3, 300]], "instances", ()),
    ],
)
def test_what_masks_hold_is_found(masks, holds, values):
    found = find_format(facts(*masks))
    assert not found.problem
    assert (found.mask_format.holds, found.mask_format.values) == (holds, values)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([[0, 1, 2], [0, 1], [0, 1, 7]], r"Only m2.png has 7.*--values 0 1 2 7"),
        ([[0, 50, 100]], r"values 0, 50, 100; expected class numbers from 0.*--values 0 50 100"),
        ([[1, 2, 3]], r"--values 1 2 3"),
        ([[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]], r"--holds classes or --holds instances"),
        ([[*range(0, 200, 2)]], r"m0.png: 100 different values up to 198.*saved as JPEG"),
    ],
)
def test_what_could_be_two_things_is_refused_with_the_settings(masks, message):
    assert re.search(message, find_format(facts(*masks)).problem)


def test_masks_that_are_known_to_hold_classes_are_not_taken_for_numbered_objects():
    numbered = facts([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4])
    for holds in ("classes", "components"):
        found = find_format(numbered, holds=holds)
        assert not found.problem
        assert found.mask_format == MaskFormat(holds, ("0", "1", "2", "3", "4"))
    assert find_format(numbered, holds="instances").mask_format == MaskFormat("instances")
    assert "--values 0 1 300" in find_format(facts([0, 1, 300]), holds="components").problem


def test_a_known_number_of_classes_settles_gaps():
    found = find_format(facts([0, 3], [0, 255]), num_classes=5)
    assert not found.problem
    assert found.mask_format.values == ("0", "1", "2", "3", "4")
    assert "expected 0 to 2" in find_format(facts([0, 3]), num_classes=3).problem
    # Two named classes and masks of black and white: nobody would have all of one class.
    assert find_format(facts([0, 255]), num_classes=2).mask_format.values == ("0", "255")
    assert find_format(facts([0, 255]), num_classes=3).mask_format.values == ("0", "1", "2")


def test_ignored_values_are_no_classes():
    found = find_format(facts([0, 1, 7], [0, 200]), ignored=("7", "200"))
    assert not found.problem
    assert found.mask_format == MaskFormat("classes", ("0", "1"), ("7", "200"))
    masks = [MaskFacts(Path("a.png"), (1, 9), True, {0xFF0000: 2, 0: 7})]
    assert find_format(masks, ignored=("#FF0000",)).mask_format.values == ("#000000",)
    assert "all values" in find_format(facts([7]), ignored=("7",)).problem


def test_colours_are_proposed_with_the_commonest_first():
    masks = [MaskFacts(Path("a.png"), (1, 9), True, {0xFF0000: 2, 0: 7})]
    found = find_format([*masks, MaskFacts(Path("b.png"), (1, 5), False, {0: 5})])
    assert "--values '#000000' '#ff0000'" in found.problem
    assert found.mask_format == MaskFormat("classes", ("#000000", "#ff0000"))
    many = MaskFacts(Path("c.png"), (1, 100), True, dict.fromkeys(range(100), 1))
    assert find_format([many]).mask_format is None


def test_numbers_become_classes():
    stored = np.array([[0, 50, 100, 255, 7]], np.int32)
    decoded = MaskFormat("classes", ("0", "50", "100"), ("7",)).decode(stored, origin="m.png")
    np.testing.assert_array_equal(decoded["labels"], [[0, 1, 2, 255, 255]])
    assert decoded["labels"].dtype == np.uint8
    with pytest.raises(ValueError, match=r"m.png: value 7"):
        MaskFormat("classes", ("0", "50", "100")).decode(stored, origin="m.png")
    white = np.array([[0, 255]], np.int32)
    decoded = MaskFormat("classes", ("0", "255")).decode(white, origin="m.png")
    np.testing.assert_array_equal(decoded["labels"], [[0, 1]])


def test_colours_become_classes():
    colors = np.array([[[0, 0, 0], [255, 0, 0], [1, 2, 3]]], np.uint8)
    mask_format = MaskFormat("classes", ("#FF0000", "#000000"), ("#010203",))
    np.testing.assert_array_equal(
        mask_format.decode(colors, origin="m.png")["labels"], [[1, 0, 255]]
    )
    # A mask of one grey is stored as numbers.
    grey = np.zeros((1, 2), np.int32)
    np.testing.assert_array_equal(mask_format.decode(grey, origin="m.png")["labels"], [[1, 1]])
    with pytest.raises(ValueError, match=r"m.png: 1 colours.*#010203"):
        MaskFormat("classes", ("#ff0000", "#000000")).decode(colors, origin="m.png")
    with pytest.raises(ValueError, match=r"m.png: colours, but --values are numbers"):
        MaskFormat("classes", ("0", "1")).decode(colors, origin="m.png")


def test_numbered_and_coloured_objects():
    numbers = np.array([[0, 3, 700, 9]], np.int32)
    decoded = MaskFormat("instances", ignored=("9",)).decode(numbers, origin="m.png")
    np.testing.assert_array_equal(decoded["instances"], [[0, 3, 700, 0]])
    np.testing.assert_array_equal(decoded["labels"], [[0, 1, 1, 255]])
    colors = np.array([[[0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0]]], np.uint8)
    decoded = MaskFormat("instances").decode(colors, origin="m.png")
    np.testing.assert_array_equal(decoded["instances"], [[0, 2, 1, 2]])
    full = MaskFormat("instances").decode(colors[:, 1:], origin="m.png")  # no background
    np.testing.assert_array_equal(full["instances"], [[2, 1, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": ("red",)}, "'red' is neither a number from 0 on nor a colour"),
        ({"values": ("0", "#ff0000")}, "either numbers or colours"),
        ({"values": ("0", "1"), "ignored": ("1",)}, "name 1 twice"),
        ({"values": tuple(map(str, range(256)))}, "256 classes; at most 255"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskFormat("classes", **arguments)


def test_packed_colours():
    colors = np.array([[[1, 2, 3]]], np.uint8)
    assert pack_colors(colors)[0, 0] == 0x010203
    assert pack_colors(np.array([[5]], np.int32))[0, 0] == 0x050505


def test_a_colour_table(tmp_path):
    path = tmp_path / "colors.csv"
    path.write_text("class,r,g,b\nroad,128,64,128\n\nside walk, #F423E8\nsky\t70 130 180\n")
    assert read_color_table(path) == {"road": "#804080", "side walk": "#f423e8", "sky": "#4682b4"}
    path.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncell:128,0,0::\n")  # CVAT
    assert read_color_table(path) == {"background": "#000000", "cell": "#800000"}
    for text, message in (
        ("road,#804080\nsky,blue\n", "line 2: 'sky,blue'; expected a class and its colour"),
        ("road,#804080\nsky,300,0,0\n", "line 2"),
        ("road,#804080\nsky,128,64,128\n", "line 2: sky or #804080 occurs twice"),
        ("nothing\n", "no colours"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_color_table(path)
