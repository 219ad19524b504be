"""Folders as a configuration: what is found is recorded, and recorded runs keep it."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from segjax.data.folders.division import DivisionConfig
from segjax.data.sources.splits import as_objects
from segjax.recipes.folders import FolderData, check_data


@pytest.fixture
def folders(tmp_path):
    """Eight images with coloured masks: black, red and blue."""
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    labels = np.zeros((32, 40), np.uint8)
    labels[4:12, 4:12], labels[20:24, 20:28] = 1, 2
    for kind, pixels in (("images", colors[labels] // 2), ("masks", colors[labels])):
        (tmp_path / kind).mkdir()
        for number in range(8):
            Image.fromarray(np.roll(pixels, number, axis=1)).save(tmp_path / kind / f"{number}.png")
    return FolderData(images=tmp_path / "images", masks=tmp_path / "masks")


def test_a_colour_table_names_the_classes_and_what_is_ignored(folders, tmp_path):
    path = tmp_path / "colors.txt"
    path.write_text("ground,#000000\ncell,#ff0000\ndirt,0,0,255\n")
    data = dataclasses.replace(folders, color_table=path).resolved()
    assert data.classes == ("ground", "cell", "dirt")
    assert data.values == ("#000000", "#ff0000", "#0000ff")
    assert data.color_table is None  # recorded as values and classes
    fewer = dataclasses.replace(folders, color_table=path, classes=("ground", "cell")).resolved()
    assert (fewer.values, fewer.ignored) == (("#000000", "#ff0000"), ("#0000ff",))
    labels = fewer.splits().train()[0]["labels"]
    assert {*np.unique(labels)} == {0, 1, 255}
    with pytest.raises(ValueError, match="no colour for sky"):
        dataclasses.replace(folders, color_table=path, classes=("ground", "sky")).resolved()


def test_what_is_resolved_resolves_to_itself(folders):
    data = dataclasses.replace(folders, values=("#000000", "#ff0000", "#0000ff")).resolved()
    assert data.resolved() == data
    assert data.classes == ("class 0", "class 1", "class 2")
    splits = data.splits()
    assert (splits.classes, splits.channels) == (data.classes, 3)
    assert [*splits.evaluation] == ["val"]
    assert len(splits.train()) + len(splits.evaluation["val"]()) == 8


def test_a_split_that_differs_from_the_recorded_one_does_not_open(folders, tmp_path):
    data = dataclasses.replace(folders, values=("#000000", "#ff0000", "#0000ff")).resolved()
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "masks" / "0.png").unlink()
    with pytest.raises(
        ValueError, match=r"have changed since the run began: \d train, \d val .* now"
    ):
        data.splits().train()


def test_colours_without_values_are_refused_and_the_check_shows_the_proposal(folders, tmp_path):
    with pytest.raises(ValueError, match=r"--values '#000000' '#ff0000' '#0000ff'"):
        folders.resolved()
    sheet = tmp_path / "sheet.png"
    report = check_data(folders, contact_sheet=sheet)
    assert len(report.problems) == 1
    assert [*report.splits["train"].label_pixels] == [0, 1, 2]
    assert np.array(Image.open(sheet)).ndim == 3
    named = dataclasses.replace(
        folders, values=("#000000", "#ff0000", "#0000ff"), classes=("a", "b", "c")
    )
    report = check_data(named)
    assert not report.problems
    assert report.class_names == ("a", "b", "c")
    assert "the rarest class is c, with 2.5 % of the labelled pixels" in report.notes[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_images": "a"}, "--val-images and --val-masks go together"),
        ({"values": ("0", "1"), "holds": "instances"}, "gives classes, but holds is instances"),
        ({"values": ("0", "1"), "classes": ("a",)}, r"1 classes \(a\), but 2 values \(0, 1\)"),
        ({"values": ("0", "red")}, "'red' is neither a number"),
        ({"classes": ("a", "a")}, "two classes are named 'a'"),
        ({"channels": 0}, "channels=0; expected at least 1"),
        ({"color_table": "t", "values": ("0", "1")}, "both give the colours"),
        ({"class_masks": "c", "holds": "components"}, "numbered objects, but holds is components"),
        (
            {"holds": "components", "classes": ("cell", "background")},
            "the classes of objects begin with the background; found cell, background",
        ),
        (
            {
                **{"images": "a", "masks": "b", "class_masks": "c"},
                **{"val_images": "a", "val_masks": "b"},
            },
            "--class-masks and --val-class-masks go together; one is missing",
        ),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FolderData(**settings)


@pytest.mark.parametrize("holds", ["components", "instances"])
def test_objects_of_several_classes_are_recorded_and_open_again(folders, holds):
    """Of connected regions, and of coloured objects with a second folder of masks."""
    values = ("#000000", "#ff0000", "#0000ff")
    second = folders.masks if holds == "instances" else None
    named = {"holds": holds, "values": values, "classes": ("ground", "a", "b")}
    data = dataclasses.replace(folders, class_masks=second, **named).resolved()
    assert (data.holds, data.values, data.has_objects) == (holds, values, True)
    assert data.resolved() == data
    splits = data.splits()
    assert splits.background == "ground"
    example = as_objects(splits).train()[0]
    assert sorted(example["classes"]) == [1, 2]
    assert len(data.proposed_class_weights) == 3


def test_nothing_held_out_is_refused(folders):
    data = dataclasses.replace(folders, classes=("a", "b", "c"), channels=3)
    with pytest.raises(ValueError, match="nothing is held out for evaluation"):
        dataclasses.replace(data, division=DivisionConfig(val_share=0.0)).splits()
    with pytest.raises(ValueError, match="the classes are read from the masks"):
        folders.splits()
