"""The log of a run: `metrics.jsonl`, TensorBoard files and other trackers.

Each line of `metrics.jsonl` is one JSON object, `{"step": 7, "split": "train", "loss": 0.31, ...,
"elapsed_seconds": 12.5}`. JSON has no NaN or infinity, so they are written as the strings "NaN",
"Infinity" and "-Infinity", as in the JSON mapping of protocol buffers. Python's `float` reads these
strings, and `read_metrics` converts them back.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segjax.files.atomic import write_bytes
from segjax.training.tensorboard import EventFile

# The only fields in which a resumed run may differ from an uninterrupted one.
WALL_CLOCK_FIELDS = frozenset({"elapsed_seconds", "images_per_second"})

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def json_ready(value: Any) -> Any:
    """Converts a value to one that `json.dumps(..., allow_nan=False)` accepts.

    Accepts nested mappings, sequences, arrays of any library that NumPy can read, numbers, strings,
    booleans, paths and None. Non-finite numbers become "NaN", "Infinity" or "-Infinity".

    Raises:
        TypeError: the value is of another type.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")
    if array.ndim:
        return [json_ready(item) for item in array]
    if array.dtype.kind in "biu":
        return array.item()
    number = float(array)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def from_json(value: Any) -> Any:
    """Converts the strings that `json_ready` wrote for non-finite numbers back to floats."""
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the lines of a `metrics.jsonl`; a half-written last line is skipped.

    Raises:
        ValueError: a line is not an object with "step" and "split"; the message names it.
    """
    return [from_json(line) for line, _ in _lines(Path(path))]


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Returns each complete line as an object and as raw bytes."""
    *complete, _half_written = path.read_bytes().split(b"\n")
    lines = []
    for number, raw in enumerate(complete, start=1):
        try:
            entry = json.loads(raw)
            _ = entry["step"], entry["split"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with "step" and "split", '
                f"got {raw[:80]!r}; remove the line to go on"
            ) from error
        lines.append((entry, raw))
    return lines


class Tracker(Protocol):
    """Receives what a run logs: TensorBoard's `EventFile`, or a service of `tracking`."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Takes finite numbers by name, such as "train/loss"."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Takes pictures, uint8 RGB [height, width, 3], by name, such as "validation/cell_07"."""
        ...

    def close(self, *, failed: bool) -> None:
        """Ends the tracking; `failed` says whether the run ends by an error or a signal."""
        ...


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a line of the log by "split/name", without the log's own."""
    return {
        f"{entry['split']}/{name}": value
        for name, value in entry.items()
        if isinstance(value, int | float) and name not in ("step", "elapsed_seconds")
    }


class MetricsLog:
    """Writes metrics to `metrics.jsonl` and to trackers, and pictures to trackers.

    With `resume_step`, the log continues from the checkpoint of that step. Lines of later steps and
    a half-written last line are deleted, and TensorBoard is told to discard those steps. The log of
    a resumed run then equals that of an uninterrupted one except in `WALL_CLOCK_FIELDS`, provided
    that each checkpoint is saved after the training of its step is logged. Without `resume_step`,
    an existing log is discarded. Both files are flushed at every call.

    TensorBoard is always among the trackers. The others also get the kept lines of the log, and
    leave out what they already have.

    "elapsed_seconds" continues from the last line kept. It leaves out the time that a killed run
    spent after that line, and the pause before the run was resumed.

    Args:
        workdir: the run directory, created if needed. TensorBoard's files go to `tensorboard/`.
        resume_step: the step of the restored checkpoint; None for a run from the start.
        evaluated: whether the evaluation of that step was finished; if not, its lines are deleted.
        trackers: further trackers, which the log closes.
        write: whether this process writes the log; otherwise it reads and writes nothing.
        clock: returns seconds, for `elapsed_seconds`.

    Raises:
        ValueError: the existing `metrics.jsonl` has a complete line that is not a metrics line.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        evaluated: bool = True,
        trackers: Sequence[Tracker] = (),
        write: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._write = write
        if not write:
            return
        path = Path(workdir) / "metrics.jsonl"
        kept = []
        if resume_step is not None and path.exists():
            kept = [
                (values, raw)
                for values, raw in _lines(path)
                if values["step"] < resume_step
                or (values["step"] == resume_step and (evaluated or values["split"] == "train"))
            ]
        elapsed = kept[-1][0].get("elapsed_seconds", 0.0) if kept else 0.0
        write_bytes(path, b"".join(raw + b"\n" for _, raw in kept))
        self._clock, self._start = clock, clock() - elapsed
        self._file = path.open("a", encoding="utf-8")
        events = EventFile(
            path.parent / "tensorboard", purge_step=0 if resume_step is None else resume_step + 1
        )
        for tracker in trackers:
            for values, _ in kept:
                tracker.scalars(values["step"], _numbers(values))
        self._trackers: list[Tracker] = [events, *trackers]
        self._closed = False

    def metrics(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Writes the values of a step as one line, and its finite numbers to the trackers.

        Args:
            step: number of updates made so far.
            split: "train" or the name of an evaluation split.
            values: numbers, arrays, strings or nested mappings of them; None where undefined.

        Raises:
            ValueError: a value has the name of one of the log's own fields.
            TypeError: a value cannot be written as JSON.
        """
        if not self._write:
            return
        reserved = {"step", "split", "elapsed_seconds"} & values.keys()
        if reserved:
            raise ValueError(f"metrics may not be named {sorted(reserved)}: the log writes those")
        elapsed = round(self._clock() - self._start, 3)
        entry = {"step": int(step), "split": split, **json_ready(values)}
        line = json.dumps(entry | {"elapsed_seconds": elapsed}, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.scalars(int(step), _numbers(entry))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 RGB [height, width, 3], to the trackers by name."""
        if self._write:
            for tracker in self._trackers:
                tracker.pictures(int(step), pictures)

    def close(self, *, failed: bool = False) -> None:
        """Closes the files and trackers; a second call does nothing.

        Args:
            failed: whether the run ends by an error or a signal.
        """
        if self._write and not self._closed:
            self._closed = True
            with contextlib.ExitStack() as stack:
                for tracker in reversed(self._trackers):
                    stack.callback(tracker.close, failed=failed)
                stack.callback(self._file.close)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.close(failed=exception[0] is not None)
        except OSError:
            if exception[0] is None:  # otherwise that one says what went wrong first
                raise
