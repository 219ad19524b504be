"""The place of a process among those that train together."""

import pytest

from segjax.training.distributed import TASKS, DistributedConfig, Place, own_place

pytestmark = pytest.mark.quick
SLURM = {
    "SLURM_JOB_ID": "61453",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*TASKS.values(), *SLURM, *OPEN_MPI, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_has_no_place():
    assert own_place(DistributedConfig()) is None


def test_three_settings_give_a_place():
    config = DistributedConfig(
        coordinator_address="[::1]:1234", num_processes=3, process_id=2, local_device_ids=(1,)
    )
    place = own_place(config)
    assert place == Place("[::1]:1234", 3, 2, (1,))
    assert (place.host, place.port) == ("::1", 1234)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_processes": 2}, "num_processes without coordinator_address and process_id"),
        ({"process_id": 1}, "process_id without coordinator_address and num_processes"),
        ({"coordinator_address": "a:1"}, "coordinator_address without num_processes and proc"),
        ({"num_processes": 0}, "num_processes=0; expected a number from 1 on"),
        ({"wait_seconds": -1.0}, "wait_seconds=-1.0; expected a number from 0 on"),
        (
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0, "auto": True},
            "auto=True and coordinator_address exclude one another",
        ),
    ],
)
def test_settings_that_go_together_are_asked_for(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**settings)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("a", 2, 0), "coordinator_address=a; expected host:port"),
        ((":123", 2, 0), "coordinator_address=:123; expected host:port"),
        (("a:99999", 2, 0), "coordinator_address=a:99999; expected host:port"),
        (("a:1", 2, 2), "process_id=2; expected 0 to 1, for num_processes=2"),
        (("a:1", 2, -1), "process_id=-1; expected 0 to 1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place, message):
    with pytest.raises(ValueError, match=message):
        Place(*place)


@pytest.mark.parametrize("variable", TASKS.values())
def test_tasks_that_do_not_know_of_each_other_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(
        ValueError, match=r"started 4 processes .* --distributed.auto True; .*False"
    ):
        own_place(DistributedConfig())
    assert own_place(DistributedConfig(auto=False)) is None
    monkeypatch.setenv(variable, "1")
    assert own_place(DistributedConfig()) is None


def test_hosts_of_a_tpu_pod_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2")
    with pytest.raises(ValueError, match="a TPU pod started 2 processes"):
        own_place(DistributedConfig())


def test_slurm_and_open_mpi_tell_the_place(monkeypatch):
    set_all(monkeypatch, SLURM)
    place = own_place(DistributedConfig(auto=True))
    assert (place.host, place.count, place.index, place.local_device_ids) == ("node07", 4, 2, (0,))
    chosen = own_place(DistributedConfig(auto=True, local_device_ids=(2, 3)))
    assert chosen.local_device_ids == (2, 3)
    for name in SLURM:
        monkeypatch.delenv(name)
    set_all(monkeypatch, OPEN_MPI)
    place = own_place(DistributedConfig(auto=True))
    assert (place.host, place.count, place.index) == ("10.96.0.1", 2, 1)


def test_without_a_cluster_auto_says_what_to_give(monkeypatch):
    with pytest.raises(ValueError, match=r"found no cluster that JAX knows .* by srun or mpirun"):
        own_place(DistributedConfig(auto=True))


def test_half_a_cluster_is_named(monkeypatch):
    set_all(monkeypatch, SLURM)
    monkeypatch.setenv("SLURM_PROCID", "two")
    with pytest.raises(ValueError, match=r"does not describe one .ValueError: .*two.*; give coord"):
        own_place(DistributedConfig(auto=True))


def test_devices_are_chosen_for_processes_that_train_together():
    with pytest.raises(ValueError, match="local_device_ids is for processes that train together"):
        own_place(DistributedConfig(local_device_ids=(0,)))
