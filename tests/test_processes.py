"""No process that a test starts outlives the test."""

import os
import signal
import sys

import pytest

from tests.processes import started

# The process and its child hold a pipe open, and write to it if they live to the end.
WAIT = """
import os, sys, time
with open(sys.argv[1], "w") as pipe:
    os.fork()
    time.sleep(30)
    pipe.write("still alive")
"""


def test_a_process_and_its_children_end_with_a_test_that_fails(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen = []

    def failing_test():
        command = [sys.executable, "-c", WAIT, str(pipe)]
        with started(command, output=tmp_path / "log") as process:
            seen.extend([process, pipe.open()])  # opens when the process has opened its end
            raise AssertionError("in the middle")

    with pytest.raises(AssertionError, match="in the middle"):
        failing_test()
    process, reader = seen
    with reader:
        assert reader.read() == ""
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_ended_keeps_its_exit_code_and_its_output(tmp_path):
    command = [sys.executable, "-c", "print('done'); raise SystemExit(3)"]
    with started(command, output=tmp_path / "log") as process:
        process.wait(timeout=60)
    assert process.returncode == 3
    assert (tmp_path / "log").read_text() == "done\n"
