"""Several devices for each image: `jit` over a mesh of devices, data × rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.ops.devices import DATA_AXIS, ROWS_AXIS
from segjax.training.batches import put_ahead, refuse_batch_size
from segjax.training.compiler import compiler_options
from segjax.training.precision import MatmulPrecision, with_precision


@dataclass(frozen=True)
class MeshParallel:
    """Examples over one axis of a mesh of devices, and the rows of each image over the other.

    The step is traced for the whole batch, and XLA divides each array. It exchanges rows at the
    borders of the devices' shares where a convolution, a pooling or a resizing reads them. Each
    random number belongs to a place in the whole batch, so that any mesh draws the same dropout
    masks. Sums, statistics of batch norm, micro-batches and metrics are those of one device.

    It has the methods of `segjax.training.parallel.DataParallel`.

    Attributes:
      data: the number of devices, or groups of them, that the examples of a batch are divided over.
      rows: the number of devices that share each image's rows; all are devices of one process.
      shard_parameters: divide parameters, optimiser state and averaged parameters over `data`, each
        along its longest axis that divides. Vectors stay whole.
      devices: the devices of all processes; None takes all that JAX finds.
      matmul_precision: precision of float32 products; see `segjax.training.precision`.

    Raises:
      ValueError: the mesh does not fit the devices.
    """

    data: int
    rows: int = 1
    shard_parameters: bool = False
    devices: tuple | None = None
    matmul_precision: MatmulPrecision = "default"

    def __post_init__(self):
        devices = self.devices or jax.devices()
        needed = self.data * self.rows
        if needed != len(devices):
            raise ValueError(
                f"parallel.data={self.data} × parallel.rows={self.rows} takes {needed} devices, "
                f"and there are {len(devices)}; {_nearest_mesh(len(devices), self.rows)}"
            )
        own = len(self._own(devices))
        if own % self.rows:
            raise ValueError(
                f"parallel.rows={self.rows}: the rows of an image are on devices of one process, "
                f"which has {own}; expected {_choices(_divisors(own))}"
            )

    @staticmethod
    def _own(devices) -> list:
        return [device for device in devices if device.process_index == jax.process_index()]

    @property
    def mesh(self) -> Mesh:
        return _mesh(list(self.devices or jax.devices()), self.rows)

    @property
    def local_devices(self) -> list:
        return self._own(self.mesh.devices.flat)

    @property
    def local_shares(self) -> int:
        """The number of parts into which this process's examples are divided."""
        return len(self.local_devices) // self.rows

    def check_batch_size(self, batch_size: int, micro_batches: int = 1):
        """Raises a ValueError unless the batch divides over `data` and micro-batches."""
        refuse_batch_size(batch_size, self.data, micro_batches, of=f"parallel.data={self.data}")

    def check_task(self, task):
        """Raises a ValueError if devices cannot share the rows of an image for this task."""
        reason = getattr(task, "whole_rows", None)
        if self.rows > 1 and reason is not None:
            raise ValueError(
                f"parallel.rows={self.rows}: {reason}; give --parallel.rows 1 and more devices to "
                "--parallel.data"
            )

    def check_batch(self, batch: dict):
        """Raises a ValueError unless the rows of the images divide over `rows`."""
        height = batch["image"].shape[1]
        if height % self.rows:
            lower = height // self.rows * self.rows
            nearest = f"{lower} or {lower + self.rows}" if lower else f"{self.rows}"
            raise ValueError(
                f"training images of {height} rows do not divide over parallel.rows={self.rows}; "
                f"the nearest height that does is {nearest}"
            )

    def sharding_of(self, x) -> NamedSharding:
        """Returns how an array of the state lies on the devices, by its shape."""
        spec = PartitionSpec()
        if self.shard_parameters and self.data > 1 and len(x.shape) > 1:
            sides = [side if side % self.data == 0 else 0 for side in x.shape]
            if any(sides):
                longest = max(range(len(sides)), key=sides.__getitem__)
                spec = PartitionSpec(*[None] * longest, DATA_AXIS)
        return NamedSharding(self.mesh, spec)

    def replicate(self, tree):
        """Puts a tree of arrays, equal in all processes, on the devices; see `sharding_of`."""

        def put(x):
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.sharding_of(x), lambda i: x[i])

        return jax.tree.map(put, tree)

    def as_global(self, tree):
        """Returns the state itself, whose arrays span all processes."""
        return tree

    def train_step(self, step: Callable) -> Callable:
        """Compiles `step(state, batch) -> (state, metrics)` for batches from `prefetch`."""
        whole = NamedSharding(self.mesh, PartitionSpec())

        def run(state, batch):
            state, metrics = step(state, batch)
            place = jax.lax.with_sharding_constraint
            state = jax.tree.map(lambda x: place(x, self.sharding_of(x)), state)
            return state, jax.tree.map(lambda x: place(x, whole), metrics)

        run = with_precision(run, self.matmul_precision)
        options = compiler_options(self.mesh.devices.flat[0].platform)
        return InMesh(jax.jit(run, donate_argnums=0, compiler_options=options), self.mesh)

    def batch_sharding(self, x, mesh: Mesh | None = None) -> NamedSharding:
        """Returns how an entry [batch, ...] of a batch lies on the devices.

        Maps [batch, height, width, ...] whose height does not divide are whole in each row of the
        mesh: the labels of a U-Net without padding may be such.
        """
        mesh = mesh or self.mesh
        is_map = len(x.shape) > 2 and x.shape[1] % self.rows == 0
        spec = PartitionSpec(DATA_AXIS, ROWS_AXIS) if is_map else PartitionSpec(DATA_AXIS)
        return NamedSharding(mesh, spec)

    def prefetch(self, batches: Iterable[dict], size: int = 2) -> Iterator[tuple[dict, dict]]:
        """Yields (host batch, device batch), loading `size` batches ahead.

        A host batch holds this process's share of the examples along its leading axis.
        """

        def put(x):
            sharding = self.batch_sharding(x)
            # Each process has its examples whole. Without the shape, JAX would take an image for
            # the share of the rows that this process's devices hold.
            shape = (x.shape[0] * self.data // self.local_shares, *x.shape[1:])
            return jax.make_array_from_process_local_data(sharding, x, shape)

        def put_batch(batch):
            self.check_batch(batch)
            return jax.tree.map(put, batch)

        return put_ahead(batches, put_batch, size)

    def predict_step(self, predict: Callable) -> Callable[[Any, dict], Callable[[], dict]]:
        """Compiles `predict(variables, batch)` to run a host batch on this process's devices.

        Processes do not wait for one another, so each may call it as often as its examples need.

        Returns:
          A function of (variables, batch). It compiles, if the batch has a new shape, and returns a
          function that computes the outputs as NumPy arrays. The batch's leading axis must divide
          over `local_shares`. Heights need not divide: the devices hold further rows, which neither
          the network nor the caller sees.
        """
        mesh = self._local_mesh
        precise = with_precision(predict, self.matmul_precision)

        def padded_predict(variables, batch, heights):
            batch = {name: x[:, : heights[name]] for name, x in batch.items()}
            outputs = precise(variables, batch)
            return jax.tree.map(partial(self._divisible, pad=jnp.pad), outputs)

        def compiled(variables, batch):
            """Returns the program for the batch's shapes, and the true heights of its outputs."""
            heights = {name: x.shape[1] if x.ndim > 2 else None for name, x in batch.items()}
            run = partial(padded_predict, heights=heights)
            placed = {name: self._divisible(x) for name, x in batch.items()}
            with jax.set_mesh(mesh):
                shapes = jax.eval_shape(precise, variables, batch)
                padded = jax.eval_shape(run, variables, placed)
            places = jax.tree.map(partial(self.batch_sharding, mesh=mesh), padded)
            kept = jax.tree.map(lambda x: x.shape[1] if len(x.shape) > 2 else None, shapes)
            options = compiler_options(mesh.devices.flat[0].platform)
            program = jax.jit(run, out_shardings=places, compiler_options=options)
            lowered = InMesh(program, mesh).lower(variables, on_devices(placed))
            return lowered.compile(), kept

        def on_devices(batch):
            return {
                name: jax.device_put(x, self.batch_sharding(x, mesh)) for name, x in batch.items()
            }

        programs: dict[Any, tuple] = {}

        def prepare(variables, batch):
            key = tuple((name, x.shape, str(x.dtype)) for name, x in batch.items())
            if key not in programs:
                programs[key] = compiled(variables, batch)
            program, kept = programs[key]
            batch = {name: self._divisible(x) for name, x in batch.items()}

            def compute():
                outputs = jax.device_get(program(variables, on_devices(batch)))
                return {
                    name: x[:, : kept[name]] if x.ndim > 2 else x for name, x in outputs.items()
                }

            return compute

        return prepare

    def local(self, tree):
        """Returns this process's copy of a tree from `replicate`, whole on each of its devices."""
        if self.shard_parameters:
            whole = NamedSharding(self.mesh, PartitionSpec())
            tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
        local = NamedSharding(self._local_mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), local), tree)

    @property
    def _local_mesh(self) -> Mesh:
        return _mesh(self.local_devices, self.rows)

    def _divisible(self, x, pad=np.pad):
        """Pads the rows of [batch, height, width, ...] to a multiple of `rows`."""
        missing = -x.shape[1] % self.rows if len(x.shape) > 2 else 0
        around = ((0, 0), (0, missing), *[(0, 0)] * (len(x.shape) - 2))
        return pad(x, around) if missing else x


@dataclass(frozen=True)
class InMesh:
    """A jitted function that is traced and run inside a mesh; see `segjax.ops.devices`."""

    function: Any
    mesh: Mesh

    def __call__(self, *arguments):
        with jax.set_mesh(self.mesh):
            return self.function(*arguments)

    def lower(self, *arguments):
        with jax.set_mesh(self.mesh):
            return self.function.lower(*arguments)


def _mesh(devices: list, rows: int) -> Mesh:
    grid = np.array(devices).reshape(-1, rows)
    return Mesh(grid, (DATA_AXIS, ROWS_AXIS), axis_types=(AxisType.Auto, AxisType.Auto))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _choices(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def _nearest_mesh(devices: int, rows: int) -> str:
    """Says which meshes use all devices, with the wanted number of rows if one has it."""
    if devices % rows == 0:
        return f"expected parallel.data={devices // rows}"
    near = min(_divisors(devices), key=lambda each: (abs(each - rows), each))
    return f"the nearest that takes all is data={devices // near} × rows={near}"
