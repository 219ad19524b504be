"""The place of a process among those that train together: given, or asked of the cluster."""

import os
from contextlib import suppress
from dataclasses import dataclass

from segjax.training.optimizer import check_least

# How schedulers tell a process the number of those that they started with it.
TASKS = {
    "SLURM": "SLURM_STEP_NUM_TASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
    "MPICH": "PMI_SIZE",
}


@dataclass(frozen=True)
class DistributedConfig:
    """Training in several processes, which all run the same command."""

    auto: bool | None = None
    """Takes address, number and id of the processes from the cluster: SLURM, Open MPI, TPU pods and
    others that JAX knows. False: a process trains alone, although the cluster started several."""
    coordinator_address: str | None = None
    """host:port at which process 0 listens; the other two settings go with it."""
    num_processes: int | None = None
    process_id: int | None = None
    """0 to num_processes − 1; each process has its own."""
    local_device_ids: tuple[int, ...] | None = None
    """The devices of its machine that this process takes, such as 0 1; None takes all of them."""
    wait_seconds: float = 30.0
    """How long processes wait for one another at the start."""

    def __post_init__(self):
        check_least(self, 0, "wait_seconds")
        check_least(self, 1, "num_processes")
        given = (self.coordinator_address, self.num_processes, self.process_id)
        names = ("coordinator_address", "num_processes", "process_id")
        missing = [name for name, value in zip(names, given, strict=True) if value is None]
        if 0 < len(missing) < len(names):
            has = [name for name in names if name not in missing]
            raise ValueError(
                f"distributed: {' and '.join(has)} without {' and '.join(missing)}: a process that "
                "trains with others needs all three, or auto on a cluster"
            )
        if self.auto is not None and not missing:
            raise ValueError(
                f"distributed: auto={self.auto} and coordinator_address exclude one another"
            )


@dataclass(frozen=True)
class Place:
    """The place of a process among those that train together.

    Attributes:
      address: host:port at which process 0 listens.
      count: number of processes.
      index: 0 to count − 1.
      local_device_ids: the devices that this process takes; None takes all of its machine.
    """

    address: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(f"coordinator_address={self.address}; expected host:port")
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"process_id={self.index}; expected 0 to {self.count - 1}, for "
                f"num_processes={self.count}"
            )

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def own_place(distributed: DistributedConfig) -> Place | None:
    """Returns this process's place among those that train together; None if it trains alone."""
    if distributed.coordinator_address is not None:
        assert distributed.num_processes is not None
        assert distributed.process_id is not None
        return Place(
            distributed.coordinator_address,
            distributed.num_processes,
            distributed.process_id,
            distributed.local_device_ids,
        )
    if distributed.auto:
        return _place_in_cluster(distributed)
    if distributed.auto is None:
        _refuse_tasks_without_each_other()
    if distributed.local_device_ids is not None:
        raise ValueError(
            "distributed.local_device_ids is for processes that train together; for one process "
            "alone, set CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS"
        )
    return None


def _place_in_cluster(distributed: DistributedConfig) -> Place:
    """Asks the cluster, by JAX's own knowledge of SLURM, Open MPI, Kubernetes and TPU pods."""
    # JAX has no public function that says what `jax.distributed.initialize` will take.
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, distributed.local_device_ids, None, int(distributed.wait_seconds)
        )
    except Exception as error:  # whatever a cluster's variables or servers lead to
        raise ValueError(
            "distributed.auto: the environment looks like a cluster's but does not describe one "
            f"({type(error).__name__}: {error}); give coordinator_address, num_processes and "
            "process_id, or auto False to train alone"
        ) from error
    if address is None or count is None or index is None:
        raise ValueError(
            "distributed.auto: found no cluster that JAX knows (SLURM, Open MPI, Kubernetes, TPU "
            "pods); was the command started by srun or mpirun? Otherwise give "
            "coordinator_address, num_processes and process_id"
        )
    return Place(address, count, index, None if devices is None else tuple(devices))


def _refuse_tasks_without_each_other():
    """Raises ValueError if a scheduler started several processes that do not know of each other."""
    hosts = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    found = {"a TPU pod": len(hosts)}
    for scheduler, variable in TASKS.items():
        with suppress(ValueError):
            found[scheduler] = int(os.environ.get(variable, "1"))
    for scheduler, count in found.items():
        if count > 1:
            raise ValueError(
                f"{scheduler} started {count} processes of this command: for one run of all of "
                "them, give --distributed.auto True; for a run of each, with a --workdir of its "
                "own, --distributed.auto False"
            )
