"""`segjax data check` on files in COCO's format, and the arguments that go together."""

import cv2
import pytest

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
    assert "NAME (with or without --source) or --coco and --images" in message
    assert message.count("\n") == 1


def test_a_missing_file_is_an_error_of_one_line(tmp_path, capsys):
    message = fails(["--coco", tmp_path / "a.json", "--images", tmp_path], capsys, 2).err
    assert message == (
        f"error: {tmp_path / 'a.json'}: no such file; expected annotations in COCO's format\n"
    )
