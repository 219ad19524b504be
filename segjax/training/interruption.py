"""Stopping a run between two steps when a signal asks for it."""

import contextlib
import signal
import threading

import jax


@contextlib.contextmanager
def stop_signals():
    """Catches SIGINT and SIGTERM, so that a loop can save before it ends.

    Yields a list of the names of the signals received, empty at first. A second signal stops the
    process at once. With several processes the signals keep their usual effect, because the
    processes would not all see them at the same step.
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
