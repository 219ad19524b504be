"""The display of a run's progress, as a bar or as plain lines, and its throughput."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

import tqdm


class Throughput:
    """Measures images per second between two readings.

    JAX runs asynchronously. Wait for a result of the last step before reading the rate, and call
    `restart` after anything that must not count: compilation, evaluation, checkpoints.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Resets the count and the clock."""
        self._images, self._start = 0, self._clock()

    def add(self, images: int) -> None:
        """Counts the images of a step, over all devices and processes."""
        self._images += images

    def read(self) -> float | None:
        """Returns images per second since the last reading or restart; None without images."""
        images, seconds = self._images, self._clock() - self._start
        self.restart()
        return images / seconds if images and seconds > 0 else None


class Progress:
    """Shows the step, the loss, images per second and the time left.

    On a terminal this is a bar. In a file or a batch system it is a plain line every
    `seconds_between_lines` and one at the end, so that logs stay readable.

    Args:
        num_steps: the step at which the run ends.
        first_step: the step that the run starts from. After a resume, earlier steps count as done,
            and the time left is computed from this process's own steps.
        write: whether this process shows anything.
        stream: the stream to write to; None takes standard error.
        clock: returns seconds, for the plain lines.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        first_step: int = 0,
        write: bool = True,
        stream: TextIO | None = None,
        seconds_between_lines: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_steps, self._first_step, self._step = num_steps, first_step, first_step
        self._write, self._stream = write, sys.stderr if stream is None else stream
        self._interval, self._clock = seconds_between_lines, clock
        self._shown = {"loss": "", "rate": ""}
        self._start: tuple[int, float] | None = None
        self._last_line = self._printed_step = None
        self._bar = None
        if write and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=num_steps,
                initial=first_step,
                file=self._stream,
                unit="step",
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}  "
                "{elapsed}, {remaining} left{postfix}",
            )

    def update(
        self, step: int, *, loss: float | None = None, images_per_second: float | None = None
    ) -> None:
        """Shows that `step` steps are done; values that are left out keep what they showed."""
        if not self._write:
            return
        self._step = step
        if loss is not None:
            self._shown["loss"] = f"loss {loss:.4g}"
        if images_per_second is not None:
            self._shown["rate"] = f"{images_per_second:.4g} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(filter(None, self._shown.values())), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = self._clock()
        if self._start is None:
            self._start = (step, now)  # leaves out the first step, which includes compilation
        if self._last_line is None or now - self._last_line >= self._interval:
            self._print_line(now, self._start)

    def _print_line(self, now: float, start: tuple[int, float]) -> None:
        first, began = start
        parts = [f"step {self._step}/{self._num_steps} ({self._step / self._num_steps:.0%})"]
        parts += filter(None, self._shown.values())
        if first < self._step < self._num_steps:
            left = (self._num_steps - self._step) * (now - began) / (self._step - first)
            parts.append(f"{tqdm.tqdm.format_interval(left)} left")
        print("  ".join(parts), file=self._stream, flush=True)
        self._last_line, self._printed_step = now, self._step

    def message(self, text: str) -> None:
        """Prints a line, such as an evaluation's result, without breaking the bar."""
        if self._bar is not None:
            tqdm.tqdm.write(text, file=self._stream)
        elif self._write:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last step and ends the display; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        elif self._start is not None and self._printed_step != self._step:
            self._print_line(self._clock(), self._start)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
