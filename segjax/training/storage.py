"""Says which folder of a run cannot be written, why, and which checkpoints are safe."""

import contextlib
import errno
import os
import re
from pathlib import Path

from segjax.training.run_directory import steps_on_disk

# TensorStore reports a failed system call this way.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# Faults of a disk, whichever file shows them. The other errors count for the run's own files.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_REMEDIES = {
    errno.ENOSPC: "have made space there",
    errno.EDQUOT: "have made space in your quota",
    errno.EROFS: "have made it writable",
    errno.EACCES: "have made it writable",
    errno.EPERM: "have made it writable",
    errno.ENOENT: "have brought it back",
    errno.ENOTDIR: "have put a folder there",
    errno.EIO: "have mended the disk",
    errno.ESTALE: "have mounted it again",
}


class StorageFailure(OSError):
    """The run directory cannot be written; the message says what is safe."""


@contextlib.contextmanager
def storage_failures(workdir: Path):
    """Turns the errors of a full, read-only or missing disk into `StorageFailure`.

    Orbax raises other types for them, which are recognised by their messages. An error about a
    file elsewhere, such as one that a user's own source or metric opens, passes.
    """
    try:
        yield
    except Exception as error:
        found = _system_error(error, Path(workdir).absolute())
        if found is None or isinstance(error, StorageFailure):
            raise
        raise StorageFailure(_describe(*found, workdir)) from error


def _system_error(error: BaseException | None, workdir: Path) -> tuple[int, str | None] | None:
    """Returns the number and file of the storage error that caused an error, or None."""
    while error is not None:
        found = _OS_ERROR.search(str(error))
        number = getattr(error, "errno", None) or (int(found.group(1)) if found else None)
        filename = getattr(error, "filename", None)
        if number in _REMEDIES and (
            number in _OF_THE_DISK
            or (found and str(workdir) in str(error))
            or _concerns(filename, workdir)
        ):
            return number, filename
        error = error.__cause__
    return None


def _concerns(filename, workdir: Path) -> bool:
    """Whether the file of an error is in the run directory, or is a folder that holds it.

    An error without a file may be anybody's, unless the run directory has gone.
    """
    if not isinstance(filename, str):
        return not workdir.is_dir()
    path, workdir = Path(filename).resolve(), workdir.resolve()
    return path.is_relative_to(workdir) or workdir.is_relative_to(path)


def _describe(number: int, filename: str | None, workdir: Path) -> str:
    steps = steps_on_disk(Path(workdir) / "checkpoints")
    if number == errno.ENOENT and not Path(workdir).is_dir():
        safe, then = "no checkpoint is in reach", "the same command goes on"
    elif steps:
        shown = ", ".join(map(str, steps))
        safe = f"safe on disk: the checkpoint{'s' if len(steps) > 1 else ''} of step {shown}"
        then = f"the same command resumes from step {steps[-1]}"
    else:
        safe, then = "no checkpoint was written yet", "the same command starts again"
    where = filename or workdir
    return f"{where}: {os.strerror(number)}; {safe}. When you {_REMEDIES[number]}, {then}"
