"""Files appear whole or not at all."""

import json

import pytest

from segjax.files.atomic import whole_folder, write_bytes, write_json, write_text


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_text(tmp_path / "a" / "b.txt", "é")
    assert path.read_bytes() == "é".encode()
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]
    assert json.loads(write_json(tmp_path / "a" / "c.json", {"x": [1]}).read_text()) == {"x": [1]}


def test_a_folder_appears_with_all_its_files(tmp_path):
    target = tmp_path / "new" / "folder"
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    made = tmp_path / "made"
    made.mkdir()
    assert target.stat().st_mode == made.stat().st_mode
    with whole_folder(made) as folder:  # an empty folder is replaced
        (folder / "b").write_text("2")
    assert (made / "b").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "new"]


def test_a_folder_that_fails_or_has_files_stays_as_it_was(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "a") as folder:
        (folder / "missing" / "half").write_text("1")
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("1")
    (tmp_path / "file").write_text("1")
    for name in ("full", "file"):
        with (
            pytest.raises(FileExistsError, match=f"{name} exists already"),
            whole_folder(tmp_path / name),
        ):
            raise AssertionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_json(path, object())
    (tmp_path / ".a.partial").mkdir()  # stands in for a full disk
    with pytest.raises(OSError, match="partial"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
