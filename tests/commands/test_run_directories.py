"""Commands on run directories that may only be read, or whose checkpoints are damaged."""

import os
import shutil

import cv2
import numpy as np
import pytest

from segjax.cli import main
from segjax.training.loop import train
from tests.training import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    config = tiny.Config(workdir=tmp_path_factory.mktemp("trained") / "run")
    train(tiny.build(config), config, experiment_file=tiny.__file__)
    return config.workdir


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return shutil.copytree(trained, tmp_path / "run")


def fails(arguments, capsys):
    """What a command says that ends with a mistake of the user's."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "Traceback" not in captured.err
    return captured


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("place", ["evaluation", "predictions"])
def test_a_run_that_cannot_be_written_is_told_before_scoring(run, capsys, place):
    shutil.rmtree(run / place)
    (run / place).write_text("in the way, as root may write everywhere")
    shown = fails(["evaluate", run], capsys)
    assert f"error: {run / place} cannot be written" in shown.err
    assert "--output DIR" in shown.err
    assert "evaluating" not in shown.out


def test_scores_and_pictures_go_to_another_folder(run, tmp_path, capsys):
    before, output = files_in(run), tmp_path / "out" / "scores"
    main(["evaluate", str(run), "--checkpoint", "latest", "--output", str(output)])
    assert files_in(run) == before
    for split in ("validation", "test"):
        scores = (output / "evaluation" / f"{split}.json").read_bytes()
        assert scores == (run / "evaluation" / f"{split}.json").read_bytes()
    assert list((output / "predictions").glob("test_*.png"))
    assert str(output / "predictions") in capsys.readouterr().out


def test_a_damaged_checkpoint_is_refused_by_name(run, tmp_path, capsys):
    path = max((run / "checkpoints" / "6" / "state").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((16, 16), np.uint8))
    commands = (
        ["evaluate", run],
        ["predict", run, tmp_path / "image.png", "--output", tmp_path / "out"],
    )
    before = files_in(run / "checkpoints")
    for command in commands:
        message = fails([*command, "--checkpoint", "latest"], capsys).err
        assert f"error: the checkpoint {run / 'checkpoints' / '6'} is damaged: its state" in message
        assert "has changed" in message
        assert message.count("\n") == 1
    assert files_in(run / "checkpoints") == before
