"""A full, read-only or vanished disk: one line that says what is safe, and a run that goes on."""

import errno
import gc
import os
import shutil
import subprocess
import warnings
from collections import namedtuple

import chex
import numpy as np
import pytest

from segjax.commands import launch
from segjax.files.atomic import write_bytes
from segjax.training.checkpoint import Checkpoints
from segjax.training.hold import Watch
from segjax.training.run_lock import RunLock
from segjax.training.storage import StorageFailure, storage_failures
from tests.training import tiny
from tests.training.test_loop import final_state, lines, run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    with warnings.catch_warnings():
        # A save that fails leaves JAX's unstarted writers behind. Their warnings belong here, not
        # to whichever test the garbage collector interrupts.
        warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
        gc.collect()


def after_evaluation(monkeypatch, step, action):
    """Does something when the evaluation of a step is over."""
    whole = Checkpoints.add_metrics

    def add_metrics(checkpoints, at, metrics):
        whole(checkpoints, at, metrics)
        if at == step:
            action()

    monkeypatch.setattr(Checkpoints, "add_metrics", add_metrics)


def fill(folder, *, but=0):
    """Fills a disk until so many bytes are left."""
    left = shutil.disk_usage(folder).free - but
    (folder / "filler").write_bytes(bytes(left))


def test_a_run_on_a_full_disk_stops_in_one_line_and_goes_on_when_there_is_space(
    small_disk, tmp_path, monkeypatch, capfd
):
    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        # The log of the next step still fits, and its checkpoint does not.
        after_evaluation(patch, 3, lambda: fill(small_disk, but=40_000))
        with pytest.raises(StorageFailure) as failure:
            run(workdir)
    message = str(failure.value)
    assert "No space left on device" in message
    assert str(workdir) in message
    assert "safe on disk: the checkpoints of step 2, 3." in message
    assert "the same command resumes from step 3" in message
    assert "\n" not in message
    shown = capfd.readouterr().err
    assert "Traceback" not in shown
    assert "warning: " in shown  # said before the checkpoint was due to be written
    (small_disk / "filler").unlink()
    run(workdir)
    run(tmp_path / "whole")
    assert lines(workdir) == lines(tmp_path / "whole")
    chex.assert_trees_all_equal(final_state(workdir), final_state(tmp_path / "whole"))


def test_a_full_disk_ends_a_command_in_one_line(small_disk, capfd):
    fill(small_disk)
    with pytest.raises(SystemExit) as stop:
        launch.run(tiny.Config, tiny.build, tiny.__file__, ["--workdir", str(small_disk / "run")])
    assert str(stop.value).startswith(f"error: {small_disk}")
    assert "No space left on device; no checkpoint was written yet" in str(stop.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_on_a_read_only_disk_says_so(small_disk):
    workdir = small_disk / "run"
    run(workdir, num_steps=2)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = "Read-only file system; safe on disk: the checkpoint of step 2"
    with pytest.raises(StorageFailure, match=message):
        run(workdir, num_steps=4, accept_changes=True)
    with pytest.raises(StorageFailure, match="Read-only file system; no checkpoint"):
        run(small_disk / "new")


def test_a_run_whose_directory_vanishes_stops_at_once(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    after_evaluation(monkeypatch, 3, lambda: shutil.rmtree(workdir))
    message = f"{workdir}: No such file or directory; no checkpoint is in reach. When you have"
    with pytest.raises(StorageFailure, match=message):
        run(workdir)
    assert not workdir.exists()


def test_a_file_in_the_place_of_the_run_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(StorageFailure, match=r"file.*: Not a directory; no checkpoint"):
            run(workdir)


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_is_said_once_until_there_is_enough_again(tmp_path, monkeypatch):
    free, said = [100, 40, 30, 100, 20], []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free[0] * 1_000_000))
    state = {"a": np.zeros(12_500_000, np.float32)}
    with RunLock(tmp_path) as lock, Checkpoints(tmp_path / "checkpoints") as checkpoints:
        watch = Watch(tmp_path, lock=lock, checkpoints=checkpoints, state=state, say=said.append)
        counts = []
        while free:
            watch.check()
            counts.append(len(said))
            free.pop(0)
    assert counts == [0, 1, 1, 1, 2]
    assert f"{tmp_path} has 40 MB left, and the next checkpoint takes about 50 MB" in said[0]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full", "/d/x"), "/d/x: No space left on device"),
        (PermissionError(errno.EACCES, "denied", "{run}/x"), "x: Permission denied"),
        (NotADirectoryError(errno.ENOTDIR, "file", "{run}/.."), "Not a directory"),
        (ValueError("Failed to write 8 bytes [os_error_code='28']"), "No space left on device"),
        (ValueError("Failed to open [os_error_code='30']"), "Read-only file system"),
        (ValueError("{run}/x: no file [os_error_code='2']"), "No such file or directory"),
    ],
)
def test_errors_of_storage_are_told_by_what_the_system_reported(tmp_path, error, words):
    error = in_run(error, tmp_path)
    with pytest.raises(StorageFailure, match=words), storage_failures(tmp_path):
        raise error
    with pytest.raises(StorageFailure, match=words), storage_failures(tmp_path):
        raise RuntimeError("saving failed") from error


@pytest.mark.quick
@pytest.mark.parametrize(
    "error",
    [
        ValueError("a"),
        OSError("b"),
        BrokenPipeError(32, "c"),
        # Files that a user's own metric or source opens.
        FileNotFoundError(errno.ENOENT, "missing", "/data/classes.txt"),
        FileNotFoundError(errno.ENOENT, "missing", "classes.txt"),
        FileNotFoundError(errno.ENOENT, "missing"),
        PermissionError(errno.EACCES, "denied", "{run}_data/x"),
        ValueError("/weights/x: no file [os_error_code='2']"),
    ],
)
def test_other_errors_pass(tmp_path, error):
    error = in_run(error, tmp_path)
    with pytest.raises(type(error)) as found, storage_failures(tmp_path):
        raise error
    assert found.value is error


def in_run(error, run):
    """Puts the run directory into the texts of an error."""
    texts = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else []
    texts = [text for text in texts if text is not None] or error.args
    return type(error)(*(t.replace("{run}", str(run)) if isinstance(t, str) else t for t in texts))


@pytest.mark.quick
def test_a_file_that_cannot_be_written_leaves_nothing_behind(small_disk):
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(small_disk / "file", os.urandom(10_000))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
