"""Checkpoints by Orbax: the newest N and the best by a metric, written in the background."""

import datetime
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from segjax.training import checksums
from segjax.training.parallel import is_main_process, wait_for_all
from segjax.training.quiet import report_failures_once
from segjax.training.run_directory import steps_on_disk
from segjax.training.state import TrainState

# Orbax logs every stage of every save at INFO, which the run's own log already covers, and warns
# about each directory that it opens read-only.
_orbax_logger = logging.getLogger("absl")
_orbax_logger.setLevel(logging.WARNING)
_orbax_logger.addFilter(lambda record: not str(record.msg).startswith("Given directory is read"))
report_failures_once()


class Checkpoints:
    """The checkpoints of one run directory.

    A checkpoint holds the whole `TrainState` and the position in the stream of examples. The data
    iterator has no other state: `segjax.data.loading.loader` reads from any position, with any
    number of workers, processes and devices. A save that is killed half-way leaves the earlier
    checkpoints intact. Each checkpoint carries checksums; see `segjax.training.checksums`.

    Args:
      directory: absolute path, shared by all processes.
      keep: number of newest checkpoints to keep; the best one is kept as well.
      best_metric: name of the metric, among those given to `add_metrics`, that ranks checkpoints.
      minimize: whether a smaller metric is better.
      read_only: write and delete nothing, not even the remains of an interrupted save, because
        another process may be training this run.

    Raises:
      checksums.DamagedCheckpoint: the metrics of a checkpoint are damaged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        best_metric: str | None = None,
        minimize: bool = False,
        read_only: bool = False,
    ):
        policies: list[checkpoint_managers.PreservationPolicy] = [
            checkpoint_managers.LatestN(n=keep)
        ]
        self._best = max if not minimize else min
        self._best_metric = best_metric

        def rank(metrics):
            value = metrics.get(best_metric, math.nan)
            return -math.inf if math.isnan(value) else -value if minimize else value

        if best_metric is not None:
            best = checkpoint_managers.BestN(
                get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        self._directory = Path(directory).absolute()
        for step in steps_on_disk(self._directory):
            # Orbax reads the metrics of all checkpoints and fails at damaged ones.
            checksums.refuse(self._directory / str(step), checksums.metrics_damage)
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                # Orbax writes metrics only if this is set; without them, a resumed run would delete
                # the best checkpoint.
                best_fn=None if best_metric is None else rank,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                save_interval_steps=0 if read_only else 1,
                read_only=read_only,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                checksums.ITEM: checksums.ChecksumHandler(),  # the last, see there
            },
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The best-scoring step (ties: the newest), or the newest step if none was scored."""
        scored = {step: score for step in self.steps if (score := self.score(step)) is not None}
        if not scored:
            return self.latest_step
        return self._best(reversed(scored), key=lambda step: scored[step])

    def score(self, step: int) -> float | None:
        """The value of `best_metric` saved with a step; None if it is missing or NaN."""
        value = (self._manager.metrics(step) or {}).get(self._best_metric)
        return None if value is None or math.isnan(value) else value

    def evaluated(self, step: int) -> bool:
        """Whether a step has metrics."""
        return bool(self._manager.metrics(step))

    def save(self, state: TrainState, *, data: dict):
        """Saves a state in the background; returns once it is copied off the devices.

        Args:
          data: the position of the data iterator, as JSON values.

        Raises:
          OSError, or an error of Orbax: this checkpoint or the last one cannot be written.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        fields = _fields(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(fields),
                data=ocp.args.JsonSave(data),
                **{checksums.ITEM: checksums.ChecksumSave(fields)},
            ),
            metrics={},  # `add_metrics` writes them; Orbax warns about None
        )

    def add_metrics(self, step: int, metrics: dict[str, float]):
        """Adds the scores of an evaluation to the checkpoint of its step.

        Waits for the save in progress, then deletes the checkpoints that are no longer among the
        newest or the best.

        Raises:
          ValueError: `best_metric` is not among the metrics.
        """
        if self._best_metric not in (None, *metrics):
            raise ValueError(f"the best metric {self._best_metric!r} is not among {list(metrics)}")
        self.wait()
        if is_main_process():
            checksums.write_metrics(self._directory / str(step), metrics)
        wait_for_all("metrics")
        self._manager.reload()
        now = datetime.datetime.now(tz=datetime.UTC)
        infos: list[Any] = [
            SimpleNamespace(step=step, time=now, metrics=self._manager.metrics(step))
            for step in self.steps
        ]
        context = checkpoint_managers.PreservationContext()
        kept = self._policy.should_preserve(infos, context=context)
        for info, keep in zip(infos, kept, strict=True):
            if not keep:
                self._manager.delete(info.step)

    def check(self):
        """Raises the error of a save that failed in the background."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Returns the state at a step.

        Args:
          like: a state of `ShapeDtypeStruct` with the shapes and shardings to restore to; the run
            that saved may have had another number of devices. Frozen variables always come from
            the checkpoint.
        """
        fields = _fields(like)
        saved = self._manager.item_metadata(step)["state"].tree
        if "frozen" in saved:
            fields["frozen"] = _like(saved["frozen"], like.step.sharding)
        return TrainState(**self._restore(step, fields))

    def read(self, step: int, sharding: jax.sharding.Sharding | None = None) -> dict:
        """Returns the fields of the state at a step, without knowing its experiment.

        Tuples of the optimiser's state come back as lists or dicts.

        Args:
          sharding: the arrays' sharding; None puts them on this process's first device.

        Raises:
          checksums.DamagedCheckpoint: the checkpoint is not as it was written.
        """
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        checksums.refuse(self._directory / str(step))
        saved = self._manager.item_metadata(step)["state"]
        return self._restore(step, _like(saved.tree, sharding))

    def data(self, step: int) -> dict:
        """Returns the position of the data iterator at a step, as given to `save`."""
        args = ocp.args.Composite(data=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["data"]

    def _restore(self, step, like):
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        fields = self._manager.restore(step, args=args)["state"]
        checksums.refuse_arrays(self._directory / str(step), fields)
        return fields

    def wait(self):
        """Waits for the save in progress."""
        self._manager.wait_until_finished()

    def close(self):
        """Waits for the save in progress and stops the background threads."""
        self.wait()
        self._manager.close()


def _fields(state):
    """Returns the state as a dict, so that a checkpoint can be read without segjax's classes."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    if state.frozen is None:  # earlier checkpoints do not have this field
        del fields["frozen"]
    return fields


def _like(tree, sharding):
    """Returns the shapes and dtypes of saved arrays, with the sharding to restore them to."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
