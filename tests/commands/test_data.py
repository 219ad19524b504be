"""`segjax data check` on folders and COCO files, and the arguments that go together."""

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax.cli import main
from tests.data.sources.coco_writer import annotation, write


def fails(arguments, capsys, status):
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", *map(str, arguments)])
    assert stop.value.code == status
    return capsys.readouterr()


def test_a_file_in_cocos_format_is_checked_and_drawn(tmp_path, capsys):
    path, images = write(tmp_path, annotation(1))
    data = tmp_path / "data"
    main(["data", "check", "--coco", str(path), "--images", str(images), "--data-dir", str(data)])
    shown = capsys.readouterr().out
    assert f"objects.json in {images}" in shown
    assert "problems: none" in shown
    sheet = data / "contact_sheets" / "objects.png"
    assert f"contact sheet: {sheet}" in shown
    assert cv2.imread(str(sheet)) is not None

    (images / "b.png").unlink()
    arguments = ["--coco", path, "--images", images, "--contact-sheet", tmp_path / "sheet.png"]
    assert "missing" in fails(arguments, capsys, 1).out
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ([], "none of them"),
        (["--coco", "a.json"], "--coco"),
        (["--images", "a"], "--images"),
        (["drive", "--coco", "a.json", "--images", "a"], "NAME, --coco, --images"),
        (["--source", "a"], "--source"),
        (["--coco", "a.json", "--images", "a", "--source", "b"], "--source, --coco, --images"),
        (["drive", "--orientation", "stored"], "NAME, --orientation"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, got, capsys):
    message = fails(arguments, capsys, 2).err
    assert message.endswith(f", but got {got}\n")
    assert "NAME (with or without --source) or --images and --masks (with or without" in message
    assert "or --coco and --images" in message
    assert message.count("\n") == 1


def test_folders_of_images_and_masks_are_checked_and_drawn(tmp_path, capsys):
    """Masks of 0, 50 and 100: refused with the setting that reads them, and right with it."""
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8], labels[10:14, 20:28] = 50, 100
    for kind, name in (("images", "a{}.jpg"), ("masks", "a{}_mask.png")):
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.fromarray(labels).save(tmp_path / kind / name.format(number))
    folders = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    sheet = tmp_path / "sheet.png"
    shown = fails([*folders, "--contact-sheet", sheet], capsys, 1).out
    assert "--values 0 50 100" in shown
    assert "masks are named IMAGE_mask" in shown
    named = ["--values", "0", "50", "100", "--classes", "ground", "cell", "dirt"]
    arguments = ["data", "check", *folders, *named, "--contact-sheet", sheet]
    main([*map(str, arguments)])
    shown = capsys.readouterr().out
    assert "problems: none" in shown
    assert "label   2    5.33 % of pixels, in 3 examples: dirt" in shown
    assert cv2.imread(str(sheet)) is not None
    ignored = ["--ignored", "100", "--values", "0", "50"]
    main([*map(str, ["data", "check", *folders, *ignored, "--contact-sheet", sheet])])
    assert "label 255    5.33 % of pixels, in 3 examples: ignored" in capsys.readouterr().out


def test_unmatched_files_are_left_out_of_the_check_as_of_training(tmp_path, capsys):
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8] = 1
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.fromarray(labels).save(tmp_path / kind / f"a{number}.png")
    (tmp_path / "masks" / "a1.png").unlink()
    folders = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    folders += ["--contact-sheet", tmp_path / "sheet.png"]
    assert "--unmatched skip leaves them out" in fails(folders, capsys, 1).out
    main(["data", "check", *map(str, folders), "--unmatched", "skip"])
    shown = capsys.readouterr().out
    assert "train: 2 examples" in shown
    assert "a1.png" in shown  # as a note


def test_objects_of_several_classes_are_counted_by_class(tmp_path, capsys):
    kinds = np.zeros((20, 30), np.uint8)
    kinds[2:8, 2:8], kinds[2:8, 8:14], kinds[12:18, 2:8] = 1, 2, 2
    numbers = np.array([0, 7, 8], np.uint8)[kinds]
    numbers[12:18, 2:8] = 9
    for kind, pixels in (("images", kinds * 9), ("numbers", numbers), ("kinds", kinds)):
        (tmp_path / kind).mkdir()
        for number in range(2):
            Image.fromarray(pixels).save(tmp_path / kind / f"a{number}.png")
    common = ["data", "check", "--images", tmp_path / "images", "--contact-sheet"]
    common += [tmp_path / "sheet.png", "--classes", "background", "round", "square"]
    for masks in (
        ["--masks", tmp_path / "kinds", "--holds", "components"],
        ["--masks", tmp_path / "numbers", "--class-masks", tmp_path / "kinds"],
    ):
        main([*map(str, [*common, *masks])])
        shown = capsys.readouterr().out
        assert "class   1  2 in 2 examples: round" in shown
        assert "class   2  4 in 2 examples: square" in shown
        assert "6 objects in 2 masks: 2 round, 4 square" in shown
        assert "problems: none" in shown
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


def test_a_missing_file_is_an_error_of_one_line(tmp_path, capsys):
    message = fails(["--coco", tmp_path / "a.json", "--images", tmp_path], capsys, 2).err
    assert message == (
        f"error: {tmp_path / 'a.json'}: no such file; expected annotations in COCO's format\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shards", "drive", "--processes", "2"], "drive is not prepared in "),
        (["shards", "drive", "--processes", "0"], "--processes 0; expected 1 or more"),
        (["prepare", "synthetic_cells", "--shards", "0"], "--shards 0; expected 1 or more"),
    ],
)
def test_what_shards_cannot_be_made_or_listed_is_said_in_one_line(
    arguments, message, tmp_path, capsys
):
    with pytest.raises(SystemExit) as stop:
        main(["data", *arguments, "--data-dir", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
