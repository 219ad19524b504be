"""How a mistake in data, settings or weights reaches the user: one line, and the rest in a file."""

import errno
import tempfile

import pytest

from segjax import cli
from segjax.commands import launch
from segjax.commands.errors import end_with_message


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def kept_traceback(folder):
    [file] = folder.glob("segjax_error_*.txt")
    return file, file.read_text(encoding="utf-8")


def test_the_message_is_shown_and_the_traceback_kept(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        end_with_message(ValueError("labels.png: cut short"), status=2)
    file, content = kept_traceback(folder)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: labels.png: cut short\nfull traceback: {file}\n"
    assert content == "ValueError: labels.png: cut short\n"


def test_the_message_of_a_system_call_begins_with_its_file(folder, capsys):
    with pytest.raises(SystemExit):
        end_with_message(IsADirectoryError(errno.EISDIR, "Is a directory", "a.png"))
    assert capsys.readouterr().err.startswith("error: a.png: Is a directory\n")


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("value"), RuntimeError("device")])
def test_an_experiment_ends_in_one_line(error, folder, capsys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(launch, "train", fail)
    workdir = tmp_path / "run"
    with pytest.raises(SystemExit):
        launch.run(
            launch.configuration.ExperimentConfig,
            lambda config: None,
            __file__,
            ["--workdir", str(workdir)],
        )
    file, content = kept_traceback(folder)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {error}", f"full traceback: {file}"]
    assert "in fail\n" in content
    assert not workdir.exists()


def test_an_error_of_the_program_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise TypeError("a mistake in an experiment file")

    monkeypatch.setattr(launch, "train", fail)
    with pytest.raises(TypeError):
        launch.run(
            launch.configuration.ExperimentConfig,
            lambda config: None,
            __file__,
            ["--workdir", str(tmp_path / "run")],
        )


def test_a_command_ends_in_one_line(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Unable to load the plugin")

    monkeypatch.setattr(cli, "_application", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "list"])
    file, _ = kept_traceback(folder)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: Unable to load the plugin", f"full traceback: {file}"]
