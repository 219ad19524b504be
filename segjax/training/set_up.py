"""JAX's settings for a run, to be made before JAX is first used."""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import jax

from segjax.training.configuration import ExperimentConfig


def set_up(config: ExperimentConfig):
    """Sets the compile cache, deterministic kernels and the processes of a distributed run."""
    # Some GPU kernels add in the order in which threads arrive, but a resumed run must equal an
    # uninterrupted one bit for bit. CPUs ignore the flag.
    flag = "--xla_gpu_deterministic_ops"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=true".strip()
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    distributed = config.distributed
    if distributed.auto or distributed.coordinator_address:
        check_own_address()
        jax.distributed.initialize(
            distributed.coordinator_address, distributed.num_processes, distributed.process_id
        )


def check_own_address():
    """Exits with a remedy if this machine's host name does not resolve to the machine itself.

    JAX's CPU backend connects processes by gloo, which listens on the address of the host name; JAX
    has no option to change it. JAX also starts the CPU backend on machines with accelerators,
    unless `JAX_PLATFORMS` leaves it out.
    """
    if "cpu" not in (jax.config.jax_platforms or "cpu"):
        return
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as listener:
            listener.bind(address)
            return
    problem = "leads to another machine" if found else "has no address"
    sys.exit(
        f"error: the host name {name!r} {problem}, and processes that train together listen on its "
        f'address: add the line "127.0.0.1 {name}" to /etc/hosts (on several machines, with this '
        "machine's address in their network)"
    )
