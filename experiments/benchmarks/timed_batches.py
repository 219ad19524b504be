"""The work that both sides of `input_pipeline.py` time: taking batches from a running loader."""

import os
import time
from collections.abc import Iterator
from pathlib import Path


class TimedBatches:
    """A call that takes batches from an endless loader and returns the seconds of the timed ones.

    Between calls, the loader's threads and processes fill their buffers. The call first takes the
    buffered batches without timing them, so the seconds are those of making batches. The fact
    "processor_seconds" is the time that all cores together spent during the last call's seconds.
    "main_processor_seconds" is the part of it in this process, without its workers.

    Args:
      batches: the loader, running or started by the first `next`.
      count: the number of timed batches.
      buffered: the number of batches taken first, at least as many as the loader keeps ready.
      note: see `measure.Timing`.
    """

    def __init__(self, batches: Iterator, *, count: int, buffered: int, note: str = ""):
        self._batches, self._count, self._buffered, self.note = batches, count, buffered, note
        self.facts = {}

    def __call__(self) -> float:
        for _ in range(self._buffered):
            next(self._batches)
        start, before = time.perf_counter(), processor_seconds(os.getpid())
        before_alone = time.process_time()
        for _ in range(self._count):
            next(self._batches)
        spent, after = time.perf_counter() - start, processor_seconds(os.getpid())
        self.facts["processor_seconds"] = after - before
        self.facts["main_processor_seconds"] = time.process_time() - before_alone
        return spent


def processor_seconds(process: int) -> float:
    """Returns the processor time of a process and its descendants so far, from Linux's /proc."""
    folder = Path("/proc") / str(process)
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        children = [
            int(child)
            for thread in (folder / "task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except FileNotFoundError:  # the process has ended
        return 0.0
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(map(processor_seconds, children))
