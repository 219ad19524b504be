"""How much memory a training step needs, as the operating system sees it; Linux and CPU only."""

import ctypes
import os
import resource
from collections.abc import Callable
from pathlib import Path


class WithMemory:
    """A step, with the memory that the process needs to run it as the fact "step_bytes".

    It is the peak of the resident memory during the later calls less what was resident `before`
    anything of the network was made: parameters, their optimiser's state, what is kept for the
    gradients, and the library's scratch. What the first call needed to compile is given back to
    the system and does not count.
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
    """The largest resident memory since the start, or since the last `forget_peak`."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Gives memory that is free back to the system, and begins to look for the peak anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
