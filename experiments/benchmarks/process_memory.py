"""Measures the memory of a training step as the operating system sees it; Linux and CPU only."""

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path


class WithMemory:
    """A step that also measures the memory it needs, as the fact "step_bytes".

    This is the peak resident memory of the calls after the first, minus the memory resident
    `before` the network was made. It covers parameters, optimiser state, values kept for the
    gradients, and the library's scratch. Memory that the first call needs for compilation is
    returned to the system and does not count.
    """

    def __init__(self, call: Callable[[], None], *, before: int, **facts):
        self._call, self._before, self.facts = call, before, facts
        self._compiled = False

    def __call__(self):
        self._call()
        if self._compiled:
            self.facts["step_bytes"] = peak_bytes() - self._before
        else:
            forget_peak()
            self._compiled = True


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Returns the largest resident memory since the start or the last `forget_peak`."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Returns free memory to the system and resets the peak."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
