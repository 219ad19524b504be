"""Files appear whole or not at all."""

import json

import pytest

from segjax.files.atomic import write_bytes, write_json, write_text


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_text(tmp_path / "a" / "b.txt", "é")
    assert path.read_bytes() == "é".encode()
    assert [each.name for each in path.parent.iterdir()] == ["b.txt"]
    assert json.loads(write_json(tmp_path / "a" / "c.json", {"x": [1]}).read_text()) == {"x": [1]}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_json(path, object())
    (tmp_path / ".a.partial").mkdir()  # stands in for a full disk
    with pytest.raises(OSError, match="partial"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
