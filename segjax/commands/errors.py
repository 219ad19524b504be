"""Errors that the user can fix, as opposed to errors of the program."""

import contextlib
from collections.abc import Iterator


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
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        raise UserError(f"{error.filename}: {error.strerror}" if named else str(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error
