"""Checks before a run of several processes starts."""

import socket
from pathlib import Path

import jax
import pytest

from segjax.training.configuration import DistributedConfig, ExperimentConfig
from segjax.training.meeting import ProcessesDiffer
from segjax.training.set_up import check_own_address, set_up

TOGETHER = DistributedConfig(coordinator_address="127.0.0.1:1", num_processes=2, process_id=0)


class Met:
    """A meeting of processes that agreed."""

    def __init__(self, address):
        self.jax_address = address

    def watch(self):
        pass


def met(place, facts, *, wait):
    assert facts["seed"] == 0
    assert facts["version of jax"] == jax.__version__
    assert not any(name.startswith("distributed") for name in facts)
    assert not {"workdir", "data_dir"} & facts.keys()
    assert wait == 30.0
    return Met("127.0.0.1:2")


@pytest.fixture
def no_start(monkeypatch):
    """Keeps JAX from starting processes; returns the list of calls."""
    asked = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *arguments, **_: asked.append(arguments)
    )
    monkeypatch.setattr("segjax.training.set_up.meet", met)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    monkeypatch.setattr(socket, "gethostname", lambda: "f3a9")
    return asked


def leads_to(monkeypatch, *addresses):
    """Makes every host name resolve to these addresses."""

    def getaddrinfo(name, *_, **__):
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ([], r"'f3a9' has no address, .* add the line \"127.0.0.1 f3a9\" to /etc/hosts"),
        (
            ["192.0.2.1"],
            "'f3a9' leads to another machine, ",
        ),  # for documentation, RFC 5737
    ],
)
def test_a_host_name_that_does_not_lead_to_the_machine_is_named(
    no_start, monkeypatch, addresses, message
):
    leads_to(monkeypatch, *addresses)
    with pytest.raises(ProcessesDiffer, match=message) as end:
        set_up(ExperimentConfig(workdir=Path("a"), distributed=TOGETHER))
    assert "\n" not in str(end.value)
    set_up(ExperimentConfig(workdir=Path("a")))  # one process needs no address
    assert no_start == []


def test_one_address_of_this_machine_is_enough(no_start, monkeypatch):
    leads_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    set_up(ExperimentConfig(workdir=Path("a"), distributed=TOGETHER))
    assert no_start == [("127.0.0.1:2", 2, 0)]


def test_a_name_of_this_machine_passes(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    check_own_address()


def test_without_the_cpu_backend_the_host_name_does_not_matter(monkeypatch):
    leads_to(monkeypatch)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cuda")
    try:
        check_own_address()
    finally:
        jax.config.update("jax_platforms", before)
