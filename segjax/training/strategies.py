"""The choice between the strategies that spread a run over devices."""

from dataclasses import dataclass, replace

import jax

from segjax.training.mesh_parallel import MeshParallel
from segjax.training.optimizer import check_least
from segjax.training.parallel import DataParallel
from segjax.training.precision import MatmulPrecision

Strategy = DataParallel | MeshParallel


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over devices. Without data and rows, each device takes whole images."""

    data: int | None = None
    """Number of devices, or groups of devices, that the batch is divided over. None takes all that
    rows leaves."""
    rows: int | None = None
    """Number of devices that share the rows of each image, so that it may be larger than one of
    them holds. They are devices of one process. With data alone it is 1."""
    shard_parameters: bool = False
    """Divide parameters, optimiser state and averaged parameters over data, instead of a copy on
    each device."""

    def __post_init__(self):
        check_least(self, 1, "data", "rows")
        if self.shard_parameters and self.data is self.rows is None:
            raise ValueError(
                "parallel.shard_parameters=True without parallel.data or parallel.rows; expected "
                "one of them, such as --parallel.data 4"
            )


def strategy_of(config: ParallelConfig, devices: tuple | None = None) -> Strategy:
    """Returns the strategy of a configuration.

    Args:
      devices: the devices of all processes; None takes all that JAX finds.

    Raises:
      ValueError: the mesh does not fit the devices.
    """
    if config.data is config.rows is None:
        return DataParallel(devices)
    rows = config.rows or 1
    count = len(devices or jax.devices())
    # Too many rows for the devices leave a share of at least one, which `MeshParallel` refuses.
    data = config.data or max(count // rows, 1)
    return MeshParallel(data, rows, config.shard_parameters, devices)


def strategy_for(
    task,
    rows: int,
    *,
    devices: tuple | None = None,
    matmul_precision: MatmulPrecision = "default",
) -> Strategy:
    """Returns the strategy that predicts for a task while `rows` devices share each image's rows.

    Args:
      rows: 1 for whole images on each device.
      devices: the devices of all processes; None takes all that JAX finds.

    Raises:
      ValueError: `rows` does not fit the devices or the task.
    """
    strategy = strategy_of(ParallelConfig(rows=rows if rows != 1 else None), devices)
    strategy.check_task(task)
    return replace(strategy, matmul_precision=matmul_precision)
