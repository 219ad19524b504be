"""Keeps a second run out of a run directory that a run writes to.

The lock is the file `.lock` of the run directory. Two rules together say whether its holder lives:

1. The holder keeps an `flock` on it, which the kernel drops when the process ends, however it ends.
   Within one machine this decides at once, and also between machines where a network file system
   shares such locks.
2. Some network file systems keep `flock` to each machine, or have none. So the holder also writes
   its machine, process and a count into the file, and raises the count every `BEAT` seconds. A
   newcomer that gets the `flock`, but finds the file of another machine, watches it for
   `MISSED_BEATS` beats. If the file changes, the holder lives; if not, it was killed, and the
   newcomer takes over. The machines' clocks play no part.

A holder that was suspended until another took over finds out at its next check and stops. A clean
end empties the file.
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
      say: shows a line of text, where the newcomer has to watch.

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
            with suppress(OSError):  # a disk that cannot be written any more has ended the run
                os.ftruncate(self._file, 0)
        self._close()

    def check(self):
        """Raises if the run directory has gone, or if another run has taken it over."""
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
        """Waits until it is certain that a holder on another machine is dead."""
        self._say(
            f"{self._path.parent} was locked by {_who(content)}; watching for "
            f"{BEAT * MISSED_BEATS:g} seconds whether that is still running"
        )
        for _ in range(MISSED_BEATS):
            time.sleep(BEAT)
            # Opened anew, as this is when network file systems look for changes.
            file = os.open(self._path, os.O_RDONLY)
            now = _read(file)
            os.close(file)
            if not now:
                return  # it has ended
            if now != content:
                raise RunLocked(self._describe(now))

    def _beat(self):
        while not self._ended.wait(BEAT):
            self._look()
            if self._lost is not None:
                return
            self._count += 1
            with suppress(OSError):  # the run itself meets what is wrong with the disk
                self._write()

    def _look(self):
        """Looks whether the file is still there and still this run's."""
        try:
            found, held = os.stat(self._path), os.fstat(self._file)
        except (FileNotFoundError, NotADirectoryError):
            where = str(self._path.parent)
            self._lost = FileNotFoundError(errno.ENOENT, "the run directory has gone", where)
            return
        except OSError:
            return  # for the moment; the run itself meets what is wrong with the disk
        content = _read(self._file)
        same_file = (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
        if not same_file or {k: _holder(content).get(k) for k in self._owner} != self._owner:
            self._lost = RunLocked(self._describe(content if same_file else b""))

    def _write(self):
        # In place and always of one length, so that a reader finds it whole.
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
    """What a lock file says of its holder; empty if it cannot be read."""
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
    """Names the running kernel, which containers share and machines of one name do not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()
