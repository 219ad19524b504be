"""Running a step on several devices and in several processes.

`DataParallel` maps the step over the batch by `pmap`; the state has no replica axis. The second
strategy, `segjax.training.mesh_parallel.MeshParallel`, has the same methods and takes the same
step; `segjax.training.strategies` chooses. No other module deals with devices.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.ops.devices import AXIS_NAME
from segjax.training.batches import put_ahead, refuse_batch_size
from segjax.training.compiler import Programs, compiler_options, with_options
from segjax.training.meeting import ProcessesDiffer
from segjax.training.precision import MatmulPrecision, with_precision


@dataclass(frozen=True)
class DataParallel:
    """Data parallelism by `pmap`: each device computes its share of the batch.

    Attributes:
      devices: the devices of all processes; None takes all that JAX finds.
      matmul_precision: precision of float32 products; see `segjax.training.precision`.
    """

    devices: tuple | None = None
    matmul_precision: MatmulPrecision = "default"

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices or jax.devices()), (AXIS_NAME,))

    @property
    def local_devices(self) -> list:
        return [d for d in self.mesh.devices.flat if d.process_index == jax.process_index()]

    @property
    def local_shares(self) -> int:
        """The number of parts into which this process's examples are divided."""
        return len(self.local_devices)

    def check_batch_size(self, batch_size: int, micro_batches: int = 1):
        """Raises a ValueError unless the batch divides over the devices and micro-batches."""
        refuse_batch_size(batch_size, self.mesh.size, micro_batches, of=f"{self.mesh.size} devices")

    def check_task(self, task):
        """Accepts every task: each device has whole images."""

    def check_batch(self, batch: dict):
        """Accepts images of any size."""

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of the state: whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def sharding_of(self, x) -> NamedSharding:
        """Returns how an array of the state lies on the devices."""
        del x
        return self.replicated

    def replicate(self, tree):
        """Copies a tree of arrays, equal in all processes, to every device."""

        def put(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.replicated, lambda index: x[index])

        return jax.tree.map(put, tree)

    def as_global(self, tree):
        """Returns the state as arrays that span all processes, which checkpoints need.

        With several processes, `pmap` returns arrays that span each process's own devices only.
        Nothing is copied.
        """

        def convert(x):
            shards = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, self.replicated, shards)

        return jax.tree.map(convert, tree)

    def train_step(self, step: Callable) -> Callable:
        """Compiles `step(state, batch) -> (state, metrics)` for batches from `prefetch`."""
        # With several processes, donation fails on the second call because the state is already
        # deleted (measured on jax 0.10.2). Without it, the old state stays until the step ends.
        donate = (0,) if jax.process_count() == 1 else ()
        mapped = jax.pmap(
            with_precision(step, self.matmul_precision),
            axis_name=AXIS_NAME,
            in_axes=(None, 0),
            out_axes=None,
            donate_argnums=donate,
            devices=self.devices,
        )
        return with_options(mapped, self.mesh.devices.flat[0].platform)

    def prefetch(self, batches: Iterable[dict], size: int = 2) -> Iterator[tuple[dict, dict]]:
        """Yields (host batch, device batch), loading `size` batches ahead.

        A host batch holds this process's share of the examples along its leading axis.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS_NAME))
        count = len(self.local_devices)

        def put(x):
            x = x.reshape(count, x.shape[0] // count, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x)

        return put_ahead(batches, partial(jax.tree.map, put), size)

    def predict_step(self, predict: Callable) -> Callable[[Any, dict], Callable[[], dict]]:
        """Compiles `predict(variables, batch)` to run a host batch on this process's devices.

        Processes do not wait for one another, so each may call it as often as its examples need.

        Returns:
          A function of (variables, batch). It compiles, if the batch has a new shape, and returns a
          function that computes the outputs as NumPy arrays. The batch's leading axis must divide
          over the local devices.
        """
        devices = self.local_devices
        precise = with_precision(predict, self.matmul_precision)
        mapped = jax.pmap(precise, in_axes=(None, 0), devices=devices)
        programs = Programs(mapped, compiler_options(devices[0].platform))

        def prepare(variables, batch):
            batch = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
            program = programs.program(variables, batch)

            def compute():
                outputs = jax.device_get(program(variables, batch))
                return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

            return compute

        return prepare

    def local(self, tree):
        """Returns this process's copy of a replicated tree, on its own devices."""
        local = NamedSharding(Mesh(np.array(self.local_devices), (AXIS_NAME,)), PartitionSpec())
        return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), local), tree)


def is_main_process() -> bool:
    """Whether this process writes the logs, the pictures and the report."""
    return jax.process_index() == 0


class MainProcessFailed(RuntimeError):
    """The main process failed; the message is that of its error."""


def in_main_process(action: Callable[[], None]):
    """Runs `action` in the main process while the others wait; all must call it.

    Raises:
      MainProcessFailed: in the other processes, if it failed. The main process raises its error.
    """
    failure = None
    if is_main_process():
        try:
            action()
        except Exception as error:
            failure = error
    said = "done" if failure is None else f"failed {str(failure) or type(failure).__name__}"
    said = gather_bytes(said.encode())[0].decode()
    if failure is not None:
        raise failure
    if said != "done":
        raise MainProcessFailed(said.removeprefix("failed "))


def gather_bytes(payload: bytes) -> list[bytes]:
    """Returns the payloads of all processes, in their order; every process must call this."""
    if jax.process_count() == 1:
        return [payload]
    sizes = multihost_utils.process_allgather(np.array(len(payload), np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(payload)] = np.frombuffer(payload, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def check_same_data(described: Mapping[str, Any]):
    """Compares what all processes see of their data; every process must call this.

    Args:
      described: JSON values by name.

    Raises:
      ProcessesDiffer: in all processes; the message names a process and the values.
    """
    mine = json.dumps(described, sort_keys=True, default=str).encode()
    first, *others = (json.loads(each) for each in gather_bytes(mine))
    for index, found in enumerate(others, 1):
        unlike = [name for name in {**first, **found} if first.get(name) != found.get(name)]
        if unlike:
            name = unlike[0]
            raise ProcessesDiffer(
                f"process {index} reads other data than process 0: {name} is {found.get(name)} "
                f"there, and {first.get(name)} in process 0; all need the same files"
            )


def wait_for_all(name: str):
    """Waits until every process has reached the point called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
