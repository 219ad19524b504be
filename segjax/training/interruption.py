"""Ending a run at a whole step when it is asked to stop."""

import contextlib
import signal
import threading

import jax


@contextlib.contextmanager
def stop_signals():
    """Collects the names of SIGINT and SIGTERM, so that a loop can save before it ends.

    Yields a list, empty until a signal comes. A second signal stops at once. With several
    processes the signals keep their meaning: not all processes would see them at the same step.
    """
    received = []
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield received
        return

    def handle(number, _):
        if received:
            raise KeyboardInterrupt("stopped at once, without a checkpoint")
        received.append(signal.Signals(number).name)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
