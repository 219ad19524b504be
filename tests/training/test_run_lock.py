"""A run directory has one run at a time, and a killed one does not keep it locked."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from segjax.training import run_lock
from segjax.training.run_lock import RunLock, RunLocked
from tests.processes import started

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import os, sys, time
from pathlib import Path
from segjax.training.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def holder(workdir, kind="alone"):
    """A process of a `with` block that holds the lock, once its output says so."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(workdir), kind]
    return started(command, output=workdir / "output", environment=environment)


def wait_until_held(workdir):
    deadline = time.monotonic() + 60
    while "held" not in (workdir / "output").read_text():
        assert time.monotonic() < deadline, (workdir / "output").read_text()
        time.sleep(0.02)


def without_shared_locks(monkeypatch):
    """A file system without `flock`, and a heart that beats fast."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(run_lock, "BEAT", 0.02)


def on_machine(monkeypatch, name, workdir, said=None):
    """A lock as a process on another machine would make it."""
    monkeypatch.setattr(run_lock, "_machine", lambda: name)
    return RunLock(workdir, say=(said if said is not None else []).append)


def test_a_second_run_is_told_who_holds_the_directory_and_since_when(tmp_path):
    with holder(tmp_path) as process:
        wait_until_held(tmp_path)
        with pytest.raises(RunLocked) as refusal, RunLock(tmp_path):
            pass
    message = str(refusal.value)
    assert f"process {process.pid} on {socket.gethostname()} (since 20" in message
    assert str(tmp_path) in message
    assert "\n" not in message


def test_the_same_process_does_not_hold_it_twice(tmp_path):
    with RunLock(tmp_path) as lock:
        with pytest.raises(RunLocked), RunLock(tmp_path):
            pass
        lock.check()  # the refused one has not let go of it
        with pytest.raises(RunLocked), RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["alone", "fork"])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path, kind):
    """Also where a child lives on that it has forked."""
    with holder(tmp_path, kind) as process:
        wait_until_held(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        said = []
        with RunLock(tmp_path, say=said.append) as lock:
            lock.check()
    assert said == []


def test_a_clean_end_leaves_nothing_to_watch(tmp_path, monkeypatch):
    with on_machine(monkeypatch, "a", tmp_path):
        pass
    assert (tmp_path / run_lock.FILE).read_bytes() == b""
    said = []
    with on_machine(monkeypatch, "b", tmp_path, said):
        assert said == []


def test_a_living_run_on_another_machine_is_found_by_its_beats(tmp_path, monkeypatch):
    without_shared_locks(monkeypatch)
    said = []
    with on_machine(monkeypatch, "a", tmp_path) as first:
        with pytest.raises(RunLocked), on_machine(monkeypatch, "b", tmp_path, said):
            pass
        first.check()
    assert len(said) == 1
    assert f"locked by process {os.getpid()} on {socket.gethostname()}" in said[0]


@pytest.mark.parametrize("content", ["whole", "torn"])
def test_a_dead_run_on_another_machine_is_followed_after_the_missed_beats(
    tmp_path, monkeypatch, content
):
    without_shared_locks(monkeypatch)
    with on_machine(monkeypatch, "a", tmp_path):
        held = (tmp_path / run_lock.FILE).read_bytes()
    (tmp_path / run_lock.FILE).write_bytes(held if content == "whole" else held[:20])
    start = time.monotonic()
    with on_machine(monkeypatch, "b", tmp_path) as lock:
        assert time.monotonic() - start > 0.9 * run_lock.BEAT * run_lock.MISSED_BEATS
        lock.check()
        assert json.loads((tmp_path / run_lock.FILE).read_bytes())["machine"] == "b"


def test_a_run_that_was_taken_over_stops(tmp_path, monkeypatch):
    without_shared_locks(monkeypatch)
    with on_machine(monkeypatch, "a", tmp_path) as suspended:
        path = tmp_path / run_lock.FILE
        other = json.loads(path.read_bytes()) | {"host": "node7", "machine": "b"}
        path.write_text(json.dumps(other))
        with pytest.raises(RunLocked, match="node7"):
            suspended.check()
    assert json.loads(path.read_bytes())["host"] == "node7"  # and leaves the other's lock alone


def test_a_directory_that_has_gone_is_noticed(tmp_path):
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run") as lock:
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FileNotFoundError, match="run directory has gone"):
            lock.check()
