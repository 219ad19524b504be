"""Keeps a second run out of a run directory that a run writes to.

The lock is the file `.lock` of the run directory. Two rules decide whether its holder is alive:

1. The holder keeps an `flock` on the file. The kernel drops it when the process ends, however it
   ends. This decides at once on one machine, and between machines if their network file system
   shares such locks.
2. Some network file systems keep `flock` local to a machine or do not have it. So the holder also
   writes its machine, its process and a count into the file, and increases the count every `BEAT`
   seconds. A newcomer that gets the `flock` but finds another machine in the file watches it for
   `MISSED_BEATS` beats. If the file changes, the holder is alive. If not, it was killed, and the
   newcomer takes over. The machines' clocks are not compared.

A holder that was suspended while another run took over notices at its next check and stops. A run
that ends normally empties the file.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

FILE = ".lock"
BEAT = 5.0
MISSED_BEATS = 6

# How `flock` says that a file system has no such locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

# The files of the locks that this process holds. A forked child would keep them locked.
_open_files = set()


def _close_in_child():
    for file in _open_files:
        os.close(file)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLocked(RuntimeError):
    """Another run writes to the run directory."""


class RunLock:
    """Holds a run directory in a `with` block.

    Args:
      workdir: the run directory, which exists.
      say: shows a line of text if the newcomer has to watch.

    Raises:
      RunLocked: on entry, another run holds the directory.
    """

    def __init__(self, workdir: Path, *, say: Callable[[str], None] = print):
        self._path = Path(workdir) / FILE
        self._say = say
        self._owner = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        }
        self._count = 0
        self._ended = threading.Event()
        self._lost = None

    def __enter__(self) -> "RunLock":
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        _open_files.add(self._file)
        try:
            self._acquire()
            self._write()
        except BaseException:
            self._close()
            raise
        self._beats = threading.Thread(target=self._beat, name="run_lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._beats.join()
        if self._lost is None:
            with suppress(OSError):  # the disk may no longer be writable
                os.ftruncate(self._file, 0)
        self._close()

    @property
    def owner(self) -> dict[str, str | int]:
        """What the file says about this process while it holds the lock."""
        return dict(self._owner)

    def holder(self) -> dict:
        """Returns what the file says about the process that holds the lock; empty if none does."""
        try:
            return _holder(self._path.read_bytes())
        except OSError:
            return {}

    def check(self):
        """Raises if the run directory has gone or another run has taken it over."""
        self._look()
        if self._lost is not None:
            raise self._lost

    def _acquire(self):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(self._describe(_read(self._file))) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        content = _read(self._file)
        if content and _holder(content).get("machine") != self._owner["machine"]:
            self._watch(content)

    def _watch(self, content):
        """Waits until it is certain that the holder on another machine is dead."""
        self._say(
            f"{self._path.parent} was locked by {_who(content)}; watching for "
            f"{BEAT * MISSED_BEATS:g} seconds whether that is still running"
        )
        for _ in range(MISSED_BEATS):
            time.sleep(BEAT)
            # Network file systems look for changes when a file is opened.
            file = os.open(self._path, os.O_RDONLY)
            now = _read(file)
            os.close(file)
            if not now:
                return  # the holder has ended
            if now != content:
                raise RunLocked(self._describe(now))

    def _beat(self):
        while not self._ended.wait(BEAT):
            self._look()
            if self._lost is not None:
                return
            self._count += 1
            with suppress(OSError):  # if it lasts, the run itself fails
                self._write()

    def _look(self):
        """Checks that the file is still there and still names this run."""
        try:
            found, held = os.stat(self._path), os.fstat(self._file)
        except (FileNotFoundError, NotADirectoryError):
            where = str(self._path.parent)
            self._lost = FileNotFoundError(errno.ENOENT, "the run directory has gone", where)
            return
        except OSError:
            return  # perhaps for a moment; if it lasts, the run itself fails
        content = _read(self._file)
        same_file = (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
        if not same_file or {k: _holder(content).get(k) for k in self._owner} != self._owner:
            self._lost = RunLocked(self._describe(content if same_file else b""))

    def _write(self):
        # Written in place and always of the same length, so that a reader finds it whole.
        content = json.dumps(self._owner | {"beats": f"{self._count:012}"}).encode()
        os.pwrite(self._file, content, 0)
        os.ftruncate(self._file, len(content))

    def _describe(self, content: bytes) -> str:
        return (
            f"{self._path.parent} is in use by {_who(content)}: two runs in one directory would "
            "destroy each other's checkpoints. Wait for it, stop it, or take another --workdir"
        )

    def _close(self):
        _open_files.discard(self._file)
        os.close(self._file)


def _read(file: int) -> bytes:
    return os.pread(file, 4096, 0)


def _holder(content: bytes) -> dict:
    """Returns what a lock file says about its holder; empty if it cannot be read."""
    with suppress(ValueError):
        holder = json.loads(content)
        if isinstance(holder, dict):
            return holder
    return {}


def _who(content: bytes) -> str:
    holder = _holder(content)
    if not holder.keys() >= {"pid", "host", "since"}:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"


def _machine() -> str:
    """Names the running kernel: containers share it, and machines of the same name do not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()
