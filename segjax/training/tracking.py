"""Experiment trackers: a second home for a run's metrics and pictures, never the first.

The run directory holds everything, whether a tracker works or not. What was sent is recorded in
`tracking.json`, so that a resumed run continues the same tracked run and sends no step twice: the
steps that it trains again have the same numbers.
"""

import importlib.util
import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segjax.files.atomic import write_json
from segjax.training.configuration import ExperimentConfig
from segjax.training.logging import Tracker
from segjax.training.parallel import in_main_process
from segjax.training.run_directory import read_config
from segjax.training.tracking_services import SECONDS_TO_FINISH, SERVICES, TrackedRun

RECORD = "tracking.json"
# Calls that wait for a slow network may hold this many bytes.
LARGEST_BACKLOG = 256_000_000
BYTES_OF_A_NUMBER = 200  # with its name


def check_tracker(name: str | None):
    """Raises ValueError, naming the extra to install, if the package of a tracker is missing."""
    spec = None if name is None else importlib.util.find_spec(name)
    # A folder of that name, such as W&B's own, is found as a namespace without an origin.
    if name is not None and (spec is None or spec.origin is None):
        raise ValueError(
            f"--track {name}: the package {name} is not installed; pip install 'segjax[{name}]'"
        )


def open_trackers(config: ExperimentConfig, *, say: Callable[[str], None]) -> list[Tracker]:
    """Starts or continues the tracked run that `config.track` asks for, in the main process.

    Every process must call it, after the run directory was opened.

    Args:
      say: shows a line of text.

    Returns:
      The tracker; none without `config.track`, in the other processes, and if a tracked run cannot
      be continued, which is a warning.

    Raises:
      ValueError: a new tracked run cannot be started, or `tracking.json` is damaged.
      MainProcessFailed: in the other processes, with the message of these.
    """
    trackers: list[Tracker] = []
    if config.track is not None:
        in_main_process(lambda: trackers.extend(_start(config.track, config, say)))
    return trackers


def _start(name, config, say) -> list[Tracker]:
    path = config.workdir / RECORD
    records = _read(path)
    record = records.setdefault(name, {"id": None, "sent": {}})

    def save():
        write_json(path, records)

    environment = json.loads((config.workdir / "environment.json").read_text())
    run = TrackedRun(
        id=record["id"],
        name=config.workdir.resolve().name,
        project=config.track_project,
        folder=config.workdir.resolve(),
        facts=read_config(config.workdir) | {"commit": environment["commit"]},
    )
    try:
        service = SERVICES[name](run)
    except Exception as error:  # whatever a service raises
        if record["id"] is None:
            raise ValueError(
                f"--track {name}: cannot start a tracked run: {_in_one_line(error)}"
            ) from error
        say(_warning(name, f"cannot continue its run {record['id']}: {_in_one_line(error)}"))
        return []
    record["id"] = service.id
    if not service.continues:
        record["sent"] = {}
    save()
    return [Background(service, record["sent"], save, name=name, say=say)]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the "id" of the tracked run and the last step "sent" of each name, by tracker."""
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text())
        return {
            name: {"id": str(record["id"]), "sent": {k: int(v) for k, v in record["sent"].items()}}
            for name, record in records.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged: expected an object with the id and the steps sent of each tracker "
            f"({type(error).__name__}: {error}); remove it to start a new tracked run"
        ) from error


class Background:
    """Passes calls on to a tracker in a thread of its own, so that training never waits for it.

    If the tracker fails or falls far behind, the next call prints one warning, and nothing more is
    sent. A resumed run sends the metrics that are missing.

    Args:
      tracker: the tracker, which this closes.
      sent: the last step sent of each name; nothing is sent again. Kept up to date.
      save: writes `sent` to disk, after each call.
      name: the tracker's name in the warning.
      say: shows a line of text; called by the thread that logs.
      patience: seconds that `close` waits for the calls that are left.
    """

    def __init__(
        self,
        tracker: Tracker,
        sent: dict[str, int],
        save: Callable[[], None],
        *,
        name: str,
        say: Callable[[str], None],
        patience: float = SECONDS_TO_FINISH,
    ):
        self._tracker, self._sent, self._save = tracker, sent, save
        self._name, self._say, self._patience = name, say, patience
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._put = self._taken = 0  # bytes; each is counted by one thread alone
        self._failure: str | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._pass_on, name=f"segjax-{name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Passes finite numbers on."""
        self._call(self._tracker.scalars, step, values, BYTES_OF_A_NUMBER * len(values))

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Passes pictures on."""
        self._call(
            self._tracker.pictures, step, pictures, sum(each.nbytes for each in pictures.values())
        )

    def close(self, *, failed: bool) -> None:
        """Ends the tracking, after waiting for the calls that are left."""
        self._calls.put((self._tracker.close, failed))
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._failure = f"did not finish within {self._patience:g} seconds"
        self._warn()

    def _call(self, function, step, named, size):
        self._warn()
        if self._failure is not None:
            return
        self._put += size
        if self._put - self._taken > LARGEST_BACKLOG:
            self._failure = "it is too far behind"
            self._warn()
        else:
            self._calls.put((function, step, dict(named), size))

    def _warn(self):
        if self._failure is not None and not self._warned:
            self._warned = True
            self._say(_warning(self._name, self._failure))

    def _pass_on(self):
        """Makes the calls in turn, until the call that closes or the first failure."""
        try:
            while len(call := self._calls.get()) > 2:
                function, step, named, size = call
                new = {k: v for k, v in named.items() if step > self._sent.get(k, -1)}
                if new:
                    function(step, new)
                    self._sent.update(dict.fromkeys(new, step))
                    self._save()
                self._taken += size
            close, failed = call
            close(failed=failed)
        except Exception as error:  # whatever a service raises
            self._failure = _in_one_line(error)


def _warning(name: str, failure: str) -> str:
    return (
        f"warning: {name}: {failure}; training goes on without it, and the run directory keeps "
        "everything. A resumed run sends the metrics that are missing"
    )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
