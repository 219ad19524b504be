"""W&B, MLflow and trackio as trackers. Each is an extra, imported when a run asks for it.

Each service reads its own environment variables, such as WANDB_MODE, MLFLOW_TRACKING_URI and
TRACKIO_SPACE_ID. Its calls are slow and may fail; `segjax.training.tracking` keeps that from the
training.

A service is a `Tracker` with the `id` of its run. `continues` says whether a run that is started
again still has what it was sent.
"""

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segjax.files.nested import flatten

SECONDS_TO_FINISH = 60.0  # that the end of a run waits for a service


@dataclass(frozen=True)
class TrackedRun:
    """What a service is told about a run.

    Attributes:
      id: the service's identifier of the run; None starts a new one.
      name: the name to show.
      project: the project; None takes that of the environment, or else "segjax".
      folder: the run directory, for files of the service.
      facts: "config", "experiment", "command" and "commit"; see `segjax.training.run_directory`.
    """

    id: str | None
    name: str
    project: str | None
    folder: Path
    facts: dict[str, Any]

    def project_or(self, variable: str) -> str:
        """Returns the project; an environment variable gives the default."""
        return self.project or os.environ.get(variable) or "segjax"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration with the other facts beside its own entries."""
        others = {key: value for key, value in self.facts.items() if key != "config"}
        return self.facts["config"] | others


class Wandb:
    """A run of Weights & Biases.

    W&B's own step may only grow, but a resumed run may send an evaluation after later steps. So the
    step is a value like others, and the x axis of all charts.

    Offline, W&B cannot continue a run: `wandb sync` replaces one part of it by the next. So each
    part has all metrics from the start, and the last one is the whole run.
    """

    def __init__(self, run: TrackedRun):
        import wandb  # pyright: ignore[reportMissingImports]

        self._image = wandb.Image
        self._run = wandb.init(
            project=run.project_or("WANDB_PROJECT"),
            id=run.id,
            name=os.environ.get("WANDB_NAME") or run.name,
            dir=str(run.folder),
            config=run.config,
            allow_val_change=True,
            resume="allow",
            reinit="create_new",  # a run that the program has open goes on
            settings=wandb.Settings(finish_timeout=SECONDS_TO_FINISH - 10),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.id: str = self._run.id
        self.continues = not self._run.offline

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers."""
        self._run.log({"step": step, **values})

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Sends pictures."""
        images = {name: self._image(picture) for name, picture in pictures.items()}
        self._run.log({"step": step, **images})

    def close(self, *, failed: bool) -> None:
        """Waits for the uploads, and marks the run as finished or failed."""
        self._run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow.

    The configuration becomes parameters, which cannot change after the start, and the file
    config.json, which each start writes again.
    """

    continues = True

    def __init__(self, run: TrackedRun):
        import mlflow  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric = mlflow.MlflowClient(), Metric
        if run.id is not None:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        else:
            name = run.project_or("MLFLOW_EXPERIMENT_NAME")
            experiment = self._client.get_experiment_by_name(name)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(name)
            )
            self.id: str = self._client.create_run(number, run_name=run.name).info.run_id
            settings = flatten(run.facts["config"])
            params = [Param(_allowed(key), str(value)) for key, value in settings.items()]
            for first in range(0, len(params), 100):  # MLflow takes so many at once
                self._client.log_batch(self.id, params=params[first : first + 100])
        tags = {"git.commit": run.facts["commit"], "name": run.facts["experiment"]}
        for key, value in tags.items():
            if value is not None:
                self._client.set_tag(self.id, f"mlflow.source.{key}", value)
        self._client.log_dict(self.id, run.facts, "config.json")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers."""
        now = time.time_ns() // 1_000_000
        metrics = [self._metric(_allowed(k), value, now, step) for k, value in values.items()]
        for first in range(0, len(metrics), 1000):  # MLflow takes so many at once
            self._client.log_batch(self.id, metrics=metrics[first : first + 1000])

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Sends pictures."""
        for name, picture in pictures.items():
            self._client.log_image(self.id, picture, key=_allowed(name), step=step)

    def close(self, *, failed: bool) -> None:
        """Marks the run as finished or failed."""
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


def _allowed(name: str) -> str:
    """Replaces the characters that MLflow refuses in names."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)


class Trackio:
    """A run of trackio, which knows runs by their names."""

    continues = True

    def __init__(self, run: TrackedRun):
        import trackio  # pyright: ignore[reportMissingImports]

        self._image = trackio.Image
        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=run.project or "segjax",
            name=self.id,
            config=run.config,
            resume="allow",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends numbers."""
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Sends pictures."""
        images = {name: self._image(picture) for name, picture in pictures.items()}
        self._run.log(images, step=step)

    def close(self, *, failed: bool) -> None:
        """Writes what is left."""
        del failed  # trackio has no such state
        self._run.finish()


SERVICES = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
