"""Files that the user has: recognised by their hashes, copied to where the search looks."""

import hashlib
import json

import pytest

from segjax.weights.add import add
from segjax.weights.known import KNOWN
from segjax.weights.places import locate, own_folder
from tests.weights.server import CONTENT, NAME, SHA256, Server, publish, use_empty_folders


@pytest.fixture(autouse=True)
def empty_folders(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "downloads" / "from a colleague.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_of_any_name_is_recognised_by_its_hash(monkeypatch, file, kind):
    digits = hashlib.new(kind, CONTENT).hexdigest()[:8]
    weights = publish(Server(), checksum=f"{kind}:{digits}")
    monkeypatch.setitem(KNOWN, NAME, weights)
    assert add(file) == (weights, own_folder() / "net.npz")
    assert locate(NAME).read_bytes() == CONTENT
    assert file.exists()
    assert add(locate(NAME))[1] == locate(NAME)  # the copy itself


def test_a_damaged_file_is_refused_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(KNOWN, NAME, publish(Server()))
    cut = tmp_path / "net.npz"
    cut.write_bytes(CONTENT[:-1])
    for name in (None, NAME):
        with pytest.raises(ValueError, match=rf"made-up/net.* has the sha256 .* not {SHA256[:8]}"):
            add(cut, name)
    assert not own_folder().exists()


def test_a_file_without_a_published_hash_needs_its_name(monkeypatch, tmp_path, file):
    weights = publish(Server(), checksum=None)
    monkeypatch.setitem(KNOWN, NAME, weights)
    with pytest.raises(ValueError, match="none of the known weights"):
        add(file)
    named = file.rename(tmp_path / "net.npz")
    with pytest.raises(ValueError, match=r"may be made-up/net\. Say which with --name NAME"):
        add(named)
    assert add(named, NAME) == (weights, own_folder() / "net.npz")
    assert json.loads((own_folder() / "net.npz.json").read_text())["sha256"] == SHA256
    assert add(named)[0] is weights  # by the recorded hash
    named.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="not made-up/net; it has the sha256"):
        add(named, NAME)


def test_what_is_no_file_or_no_name_is_refused(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        add(tmp_path / "nothing")
    with pytest.raises(ValueError, match="did you mean 'torchvision/resnet34'"):
        add(file, "torchvision/resnet43")
