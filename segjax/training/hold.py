"""Holds a run directory while a run writes to it: locks, opens, repairs and watches it."""

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from segjax.training.checkpoint import Checkpoints
from segjax.training.meeting import ProcessesDiffer
from segjax.training.parallel import gather_bytes, in_main_process, is_main_process
from segjax.training.run_directory import (
    changed_versions,
    open_run,
    record_peak_memory,
    steps_on_disk,
)
from segjax.training.run_lock import RunLock
from segjax.training.set_aside import set_damaged_aside
from segjax.training.storage import storage_failures

SEEN_WITHIN = 10.0  # seconds until a network file system shows a new file everywhere


@contextlib.contextmanager
def hold_run(config, experiment_file, announce: Callable[[bool], None]) -> Iterator[RunLock]:
    """Opens the run directory for a run, in a `with` block that all processes enter.

    The main process alone locks it and writes to it.

    Args:
      config: an `ExperimentConfig`.
      experiment_file: the file that defines the experiment.
      announce: prints what starts; its argument says whether the directory held this run already.

    Yields:
      The lock, held in the main process.

    Raises:
      RunLocked: another run holds the directory.
      ChangedConfiguration: the directory holds a run with another configuration.
      DamagedCheckpoint: the directory has checkpoints, but none is intact.
      ProcessesDiffer: the directory is not the same in all processes.
      MainProcessFailed: in the other processes, with the message of one of these.
      StorageFailure: the directory cannot be written; also raised from the block.
      ValueError: `experiment_file` is not a Python file.
    """
    if Path(experiment_file).suffix != ".py" or not Path(experiment_file).is_file():
        raise ValueError(
            f"experiment_file={str(experiment_file)!r}: expected the Python file that defines "
            "Config and build, which predictions run again; in a notebook, write one with "
            "%%writefile and import it with segjax.training.experiment.load_module"
        )
    with storage_failures(config.workdir), contextlib.ExitStack() as stack:
        if config.workdir.exists() and not config.workdir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(config.workdir))
        config.workdir.mkdir(parents=True, exist_ok=True)
        lock = RunLock(config.workdir)

        def open_directory():
            stack.enter_context(lock)
            changed = changed_versions(config.workdir)
            announce(open_run(config, experiment_file))
            if changed:
                print(
                    f"versions changed since the last part of this run: {', '.join(changed)}; it "
                    "goes on, but no longer equals an uninterrupted run bit for bit"
                )
            for moved in set_damaged_aside(config.workdir / "checkpoints"):
                print(moved)

        in_main_process(open_directory)
        _check_shared(config.workdir, lock)
        try:
            yield lock
        finally:
            if is_main_process():
                with contextlib.suppress(OSError):  # a full disk has told of itself already
                    record_peak_memory(config.workdir)


def _check_shared(workdir: Path, lock: RunLock) -> None:
    """Raises ProcessesDiffer in all processes unless all see the lock of the main process."""
    if jax.process_count() == 1:
        return
    owner = json.loads(gather_bytes(json.dumps(lock.owner).encode())[0])
    deadline = time.monotonic() + SEEN_WITHIN
    while not (seen := lock.holder().items() >= owner.items()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = b"" if seen else str(lock.owner["host"]).encode()
    places = [each.decode() for each in gather_bytes(blind)]
    for index, host in enumerate(places):
        if host:
            raise ProcessesDiffer(
                f"process {index} on {host} does not see process 0's files in {workdir}: expected "
                "a --workdir on a file system that all machines share"
            )


class Watch:
    """Watches over a run directory while the run goes on.

    Args:
      lock: the lock that this process holds; None in all but the main process.
      checkpoints: the run's checkpoints.
      state: the arrays to save; the first checkpoint takes about as many bytes.
      say: shows a line of text.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        lock: RunLock | None,
        checkpoints: Checkpoints,
        state,
        say: Callable[[str], None],
    ):
        self._workdir, self._lock, self._checkpoints = workdir, lock, checkpoints
        self._needed = sum(x.nbytes for x in jax.tree.leaves(state))
        self._measured = None  # the step whose size on disk is known
        self._say = say
        self._warned = False

    def check(self):
        """Raises if the run can no longer save, and warns if the next checkpoint will not fit.

        Raises if a save has failed in the background, if the directory has gone, or if another run
        has taken it over. Warns once, until there is space again.
        """
        self._checkpoints.check()
        if self._lock is None:
            return
        self._lock.check()
        self._measure()
        free = shutil.disk_usage(self._workdir).free
        warned, self._warned = self._warned, free < self._needed
        if self._warned and not warned:
            self._say(
                f"warning: {self._workdir} has {_size(free)} left, and the next checkpoint takes "
                f"about {_size(self._needed)}: make space before it is due"
            )

    def _measure(self):
        """Estimates the size of the next checkpoint by the last one's size on disk."""
        steps = steps_on_disk(self._workdir / "checkpoints")
        if steps and steps[-1] != self._measured:
            self._measured = steps[-1]
            files = (self._workdir / "checkpoints" / str(steps[-1])).rglob("*")
            self._needed = sum(512 * file.lstat().st_blocks for file in files)


def _size(count: int) -> str:
    return f"{count / 1e6:,.3g} MB" if count < 1e9 else f"{count / 1e9:,.3g} GB"
