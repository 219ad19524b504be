"""Stopping a run between two steps when a signal asks for it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(KeyboardInterrupt):
    """A signal, named by `signal`, ended the run after the checkpoint of a step."""

    def __init__(self, signal: str, step: int):
        super().__init__(f"stopped by signal {signal}; the same command resumes from step {step}")
        self.signal = signal


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], str | None]]:
    """Catches SIGINT and SIGTERM, so that a loop can save before it ends.

    Yields a function that the loop calls once after each step with the step's number. It returns
    None, or the name of the signal that asks the loop to save and end. With one process, a second
    signal stops the process at once. With several, a SIGTERM to any of them stops all after the
    same step, by JAX's preemption service; SIGINT keeps its usual effect.
    """
    if jax.process_count() > 1:
        yield _agreed
        return
    received: list[str] = []

    def asked(_: int) -> str | None:
        return received[0] if received else None

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number, _):
        if received:
            raise KeyboardInterrupt("stopped at once, without a checkpoint")
        received.append(signal.Signals(number).name)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _agreed(step: int) -> str | None:
    return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
