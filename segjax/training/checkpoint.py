"""Checkpoints by Orbax: the newest N and the best by a metric, written in the background."""

import datetime
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from segjax.training import (
    checksums,
    quiet,  # noqa: F401, for its effect
)
from segjax.training.parallel import is_main_process, wait_for_all
from segjax.training.run_directory import steps_on_disk
from segjax.training.state import TrainState

# Orbax reports each step of each save below this level; a run's log has its own line for it. And
# it warns of every directory that it is asked to only read.
_orbax_logger = logging.getLogger("absl")
_orbax_logger.setLevel(logging.WARNING)
_orbax_logger.addFilter(lambda record: not str(record.msg).startswith("Given directory is read"))


class Checkpoints:
    """The checkpoints of one run directory.

    A checkpoint holds the whole `TrainState` and the place in the stream of examples. That place is
    the whole state of the data iterator: `segjax.data.loading.loader` reads from any place, with
    any number of workers, processes and devices. A save killed half-way leaves the earlier
    checkpoints as they were. Checksums go with it; see `segjax.training.checksums`.

    Args:
      directory: absolute path, shared by all processes.
      keep: number of newest checkpoints kept.
      keep_best: number of best ones kept besides, among those saved with `best_metric`.
      best_metric: name in the metrics given to `add_metrics`; larger is better, smaller if
        `minimize`.
      read_only: write and remove nothing, not even what an interrupted save has left: the run
        may be going on in another process.

    Raises:
      checksums.DamagedCheckpoint: the metrics of a checkpoint cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        minimize: bool = False,
        read_only: bool = False,
    ):
        policies = [checkpoint_managers.LatestN(n=keep)]
        self._best = max if not minimize else min
        self._best_metric = best_metric

        def rank(metrics):
            value = metrics.get(best_metric, math.nan)
            return -math.inf if math.isnan(value) else -value if minimize else value

        if best_metric is not None:
            best = checkpoint_managers.BestN(
                get_metric_fn=rank, n=keep_best, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        self._directory = Path(directory).absolute()
        for step in steps_on_disk(self._directory):
            # Orbax reads the metrics of all checkpoints, and would stumble over damaged ones.
            checksums.refuse(self._directory / str(step), checksums.metrics_damage)
        self._policy = checkpoint_managers.AnyPreservationPolicy(policies)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                # Without it Orbax writes no metrics: a resumed run would drop the best checkpoint.
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
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """All complete checkpoints, the oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the best metric, of several the newest; so where none has one."""
        scored = {step: score for step in self.steps if (score := self.score(step)) is not None}
        return self._best(reversed(scored), key=scored.get) if scored else self.latest_step

    def score(self, step: int) -> float | None:
        """The best metric as saved with a step; None if none was, or not a number."""
        value = (self._manager.metrics(step) or {}).get(self._best_metric)
        return None if value is None or math.isnan(value) else value

    def evaluated(self, step: int) -> bool:
        """Whether a step has been given its metrics."""
        return bool(self._manager.metrics(step))

    def save(self, state: TrainState, *, data: dict):
        """Saves a state; returns as soon as it is copied off the devices.

        Args:
          data: JSON values that say where the data iterator stands.

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
            metrics={},  # `add_metrics` writes them; at None Orbax warns
        )

    def add_metrics(self, step: int, metrics: dict[str, float]):
        """Adds the metrics of an evaluation to the checkpoint of its step.

        Waits for the save in progress; then removes the checkpoints that are no longer among the
        newest and the best.

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
        infos = [
            SimpleNamespace(step=step, time=now, metrics=self._manager.metrics(step))
            for step in self.steps
        ]
        context = checkpoint_managers.PreservationContext()
        kept = self._policy.should_preserve(infos, context=context)
        for info, keep in zip(infos, kept, strict=True):
            if not keep:
                self._manager.delete(info.step)

    def check(self):
        """Raises the error of a save that has failed in the background, if one has."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, like: TrainState) -> TrainState:
        """Returns the newest state.

        Args:
          like: a state of `ShapeDtypeStruct` with the shapes and shardings wanted; the number of
            devices need not be that of the run that saved. Frozen variables are those that were
            saved, whatever `like` has.
        """
        fields = _fields(like)
        saved = self._manager.item_metadata(self.latest_step)["state"].tree
        if "frozen" in saved:
            fields["frozen"] = _like(saved["frozen"], like.step.sharding)
        return TrainState(**self._restore(self.latest_step, fields))

    def read(self, step: int, sharding: jax.sharding.Sharding | None = None) -> dict:
        """Returns the fields of the state of a step, by what was saved alone.

        For evaluation and for reading a checkpoint without its experiment: where the optimiser's
        state was a tuple it is a list or a dict.

        Args:
          sharding: of the arrays; None puts them on the first device of this process.

        Raises:
          checksums.DamagedCheckpoint: it is not as it was written.
        """
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        checksums.refuse(self._directory / str(step))
        saved = self._manager.item_metadata(step)["state"]
        return self._restore(step, _like(saved.tree, sharding))

    def data(self, step: int) -> dict:
        """Returns where the data iterator stood at a step, as given to `save`."""
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
        """Waits for the save in progress and ends the background threads."""
        self.wait()
        self._manager.close()


def _fields(state):
    """The state as a dict, so that a checkpoint can be read without segjax's classes."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    if state.frozen is None:  # checkpoints are older than this field
        del fields["frozen"]
    return fields


def _like(tree, sharding):
    """The shapes of saved arrays, with the sharding that they are to have."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
