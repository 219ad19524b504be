"""`segjax weights`, and the commands that take weights by name."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from segjax.cli import main
from segjax.data.images import read_image
from segjax.weights.known import KNOWN
from segjax.weights.places import own_folder
from tests.fixtures.reference_weights import reference_state
from tests.pretrained.source_shapes import source_shapes
from tests.weights.server import CONTENT, NAME, publish, serving, use_empty_folders


@pytest.fixture(autouse=True)
def empty_folders(monkeypatch, tmp_path):
    use_empty_folders(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # commands set them


@pytest.fixture
def server(monkeypatch):
    """A server with made-up weights, which the table lists."""
    with serving() as running:
        monkeypatch.setitem(KNOWN, NAME, publish(running))
        yield running


@pytest.fixture
def trained(server, monkeypatch):
    """The made-up weights are those of an eighth of MobileNetV2, for three classes."""
    hints = {
        "MobilenetV2/expanded_conv_16/project/weights": (1, 1, 120, 40),
        "MobilenetV2/expanded_conv_1/project/weights": (1, 1, 12, 3),
        "logits/semantic/weights": (1, 1, 256, 3),
    }
    own_folder().mkdir(parents=True)
    path = own_folder() / "made.npz"
    np.savez(path, **reference_state(source_shapes("tf/deeplabv3_mobilenetv2", hints)))
    content = path.read_bytes()
    path.unlink()
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    options = {"classes": ("sky", "sea", "land"), "input_side": 33}
    monkeypatch.setitem(KNOWN, NAME, publish(server, checksum=checksum, options=options))
    server.files["/models/net.npz"] = content
    return server


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


def run(*arguments):
    main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    """Runs a command that should end with a message of one line, and returns it."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_the_list_has_every_name_and_says_what_is_here(server, capsys):
    own_folder().mkdir(parents=True)
    (own_folder() / "net.npz").write_bytes(CONTENT)
    run("weights", "list")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if "/" in line[:20]}
    assert rows.keys() >= KNOWN.keys()
    assert rows[NAME].split()[1:3] == ["yes", "(segjax)"]
    assert rows[NAME].endswith("a licence")
    for part in ("168 MB", "mIoU 66.4", "BSD-3-Clause"):
        assert part in rows["torchvision/deeplabv3_resnet50"]
    assert str(own_folder()) in "\n".join(lines)
    assert server.requests == []


def test_get_downloads_once_and_names_the_file(server, capsys):
    run("weights", "get", NAME)
    shown = capsys.readouterr().out
    assert "made-up/net: 3.1 MB, licence a licence, from http://127.0.0.1:" in shown
    assert f"{NAME} is in {own_folder() / 'net.npz'}" in shown
    run("weights", "get", NAME)
    assert capsys.readouterr().out == f"{NAME} is in {own_folder() / 'net.npz'}\n"
    assert len(server.requests) == 1


def test_get_takes_a_mirror_and_names_mistakes(server, capsys):
    server.files = {"/mirror/net.npz": CONTENT}
    assert "no such file (404)" in fails(capsys, "weights", "get", NAME)
    assert "expected an address" in fails(capsys, "weights", "get", NAME, "--mirror", "here")
    assert f"did you mean {NAME!r}" in fails(capsys, "weights", "get", "made-up/nett")
    assert "expected names of weights" in fails(capsys, "weights", "get")
    run("weights", "get", NAME, "--mirror", f"{server.address}/mirror")
    assert (own_folder() / "net.npz").read_bytes() == CONTENT


def test_add_recognises_a_file_and_names_mistakes(server, tmp_path, capsys):
    file = tmp_path / "brought.bin"
    file.write_bytes(CONTENT)
    run("weights", "add", file)
    assert f"{file} is {NAME}; it was copied to {own_folder()}" in capsys.readouterr().out
    assert "expected files of weights" in fails(capsys, "weights", "add")
    assert "is for one file" in fails(capsys, "weights", "add", file, file, "--name", NAME)
    file.write_bytes(CONTENT[:-1])
    assert "none of the known weights" in fails(capsys, "weights", "add", file)
    assert server.requests == []


def test_predict_takes_a_name_and_downloads_only_if_asked(trained, photo, tmp_path, capsys):
    output = tmp_path / "out"
    message = fails(capsys, "predict", NAME, photo, "--output", output)
    assert "segjax weights get made-up/net, or the flag --download" in message
    assert trained.requests == []
    run("predict", NAME, photo, "--output", output, "--download")
    assert len(trained.requests) == 1
    file = own_folder() / "net.npz"
    shown = capsys.readouterr().out
    assert f"predicting with {NAME} from {file}" in shown
    assert "0 sky, 1 sea, 2 land" in shown
    record = json.loads((output / "predict.json").read_text())
    assert (record["model"], record["weights"]) == (NAME, str(file))
    labels = read_image(output / "labels" / "a.png")[..., 0]
    assert labels.shape == (20, 30)


def test_evaluate_takes_a_name_and_downloads_only_if_asked(server, photo, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(
        "segjax.commands.evaluate_folders.evaluate_images",
        lambda *_, weights, **options: used.append(weights),
    )
    arguments = ("evaluate", NAME, "--images", photo.parent, "--masks", photo.parent)
    assert "or the flag --download" in fails(capsys, *arguments)
    assert server.requests == []
    run(*arguments, "--download")
    run(*arguments)
    assert used == [own_folder() / "net.npz"] * 2
    assert len(server.requests) == 1


def test_options_that_contradict_a_name_are_refused(server, photo, tmp_path, capsys):
    output = ("--output", tmp_path / "out")
    file = tmp_path / "net.npz"
    file.write_bytes(CONTENT)
    for arguments, message in (
        ((NAME, "--weights", file, "--download"), "leave out --weights, or --download"),
        ((tmp_path, "--download"), "is no name of `segjax weights list`"),
        (("made-up/nett", "--download"), f"did you mean {NAME!r}"),
        (("smp/unet_resnet34",), "needs --weights FILE, or a name of `segjax weights list`"),
    ):
        assert message in fails(capsys, "predict", arguments[0], photo, *arguments[1:], *output)
    own_folder().mkdir(parents=True)
    shutil.copy(file, own_folder())
    message = fails(capsys, "predict", NAME, photo, "--checkpoint", "last", *output)
    assert f"--checkpoint is for a run; {NAME} is a model trained elsewhere" in message
    assert server.requests == []
