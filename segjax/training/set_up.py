"""JAX's settings for a run, to be made before JAX is first used."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import jax

from segjax.files.nested import flatten
from segjax.training import configuration
from segjax.training.configuration import ExperimentConfig
from segjax.training.distributed import own_place
from segjax.training.meeting import Meeting, ProcessesDiffer, meet
from segjax.training.run_directory import commit, versions


def set_up_alone():
    """Sets the compile cache and deterministic kernels, for a process that works by itself."""
    # Some GPU kernels add in the order in which threads arrive, but a resumed run must equal an
    # uninterrupted one bit for bit. CPUs ignore the flag.
    flag = "--xla_gpu_deterministic_ops"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=true".strip()
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def set_up(config: ExperimentConfig) -> Meeting | None:
    """Does what `set_up_alone` does, and joins the processes that train together.

    Returns:
      The meeting of the processes, which they watch until they leave it; None for one process.

    Raises:
      ProcessesDiffer: several processes cannot train together; the message says why.
      ValueError: the settings of the processes are wrong.
    """
    set_up_alone()
    place = own_place(config.distributed)
    if place is None or place.count == 1:
        return None
    check_own_address()
    wait = config.distributed.wait_seconds
    meeting = meet(place, _facts(config), wait=wait)
    meeting.watch()
    jax.distributed.initialize(
        meeting.jax_address,
        place.count,
        place.index,
        local_device_ids=place.local_device_ids,
        initialization_timeout=max(int(wait), 1),
        # JAX would still ask the cluster for the devices, if they are None.
        cluster_detection_method="deactivate",
    )
    return meeting


def _facts(config: ExperimentConfig) -> dict:
    """Returns what processes must have in common: versions, and settings but those of a machine."""
    values = flatten(configuration.to_dict(config))
    own = ("workdir", "train.num_workers", *configuration.paths(config))
    settings = {
        name: value
        for name, value in values.items()
        if name not in own and not name.startswith("distributed.")
    }
    packages = {f"version of {name}": value for name, value in versions().items()}
    return settings | packages | {"commit of segjax": commit()}


def check_own_address():
    """Raises ProcessesDiffer if this machine's host name does not resolve to the machine itself.

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
    raise ProcessesDiffer(
        f"the host name {name!r} {problem}, and processes that train together listen on its "
        f'address: add the line "127.0.0.1 {name}" to /etc/hosts (on several machines, with this '
        "machine's address in their network)"
    )
