"""Keeps one failure of Orbax from being reported hundreds of times.

When an array of a checkpoint cannot be written, Orbax raises the error to its caller. It also logs
it in each of its threads, asyncio logs it for the other arrays, and TensorStore prints a traceback
for each array that finishes after the event loop was closed. On a full disk, a network of 300
arrays would fill the screen.
"""

import logging
import sys


def report_failures_once():
    """Drops the repetitions from now on in the whole process."""
    hook = sys.unraisablehook

    def unless_loop_is_closed(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = unless_loop_is_closed
    logging.getLogger("absl").addFilter(_is_not_a_repetition)
    logging.getLogger("asyncio").addFilter(_is_not_of_tensorstore)


def _is_not_a_repetition(record: logging.LogRecord) -> bool:
    return record.exc_info is None


def _is_not_of_tensorstore(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return "os_error_code=" not in str(error)
