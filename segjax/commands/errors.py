"""Errors that the user can fix, as opposed to errors of the program."""

import contextlib
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from segjax.data.checks.examples import BadData

# What bad data, settings or weights raise, in segjax or in a library below it. Other errors are
# the program's own, or those of an experiment file: their traceback is shown.
EXPECTED = (OSError, ValueError, RuntimeError)


class UserError(Exception):
    """Shown as one line, `error: ...`, without a traceback."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns an OSError or ValueError inside the block into a `UserError`.

    The block should only open what the user named. Errors of the computation that follows are
    errors of the program or of an experiment, and need their traceback.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(message_of(error)) from error


def message_of(error: BaseException) -> str:
    """Returns the message of an error; that of a system call begins with its file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def end_with_message(error: BaseException, *, status: int = 1) -> NoReturn:
    """Ends the process with the error's message alone, and keeps its traceback in a file.

    The file lies in the folder for temporary files, since a failed start leaves no run directory.
    """
    message = message_of(error)
    if isinstance(error, BadData):  # it says everything
        print(f"error: {message}", file=sys.stderr)
        sys.exit(status)
    with tempfile.NamedTemporaryFile(
        "w", prefix="segjax_error_", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write("".join(traceback.format_exception(error)))
    print(f"error: {message}\nfull traceback: {Path(file.name)}", file=sys.stderr)
    sys.exit(status)
