"""Processes that tests start: none outlives its test."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(
    command: Sequence[str], *, output: Path, environment: Mapping[str, str] = os.environ
) -> Iterator[subprocess.Popen]:
    """Starts a process for a `with` block and kills it at the end, if it is still running.

    The process leads a group of its own, and the whole group is killed, also when the block fails.

    Args:
      output: the file that its output is appended to.
    """
    with output.open("a") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen):
    """Kills a process from `started` and its children, and waits for its end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
