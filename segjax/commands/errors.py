"""Errors that the user can mend, told apart from those of the program."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Shown as one line, `error: ...`, without a traceback."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what is raised for bad input within the block into a `UserError`.

    The block should hold the opening of what the user named and not the computation behind it: an
    error there is one of the program or of somebody's experiment, and needs its traceback.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        raise UserError(f"{error.filename}: {error.strerror}" if named else str(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error
