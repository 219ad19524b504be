"""Experiment files as commands: the command line, the processes, the errors that users cause."""

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from segjax.training import configuration
from segjax.training.evaluate import Evaluation
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.run_directory import ChangedConfiguration


def run(
    config_class,
    build,
    experiment_file,
    arguments: list[str] | None = None,
    *,
    variants: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Evaluation]:
    """Runs an experiment file as a command: parse, set JAX up, build and train.

    Args:
      config_class: an `ExperimentConfig`.
      build: config → `Experiment`.
      experiment_file: the file of these two, `__file__`.
      arguments: of the command line; None takes the process's own.
      variants: see `configuration.parse`.

    Returns:
      The last evaluation of each split.
    """
    config = configuration.parse(config_class, arguments, variants=variants)
    set_up(config)
    try:
        return train(build(config), config, experiment_file=experiment_file)
    except (ChangedConfiguration, NonFiniteLoss, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def set_up(config: configuration.ExperimentConfig):
    """Sets JAX up for a run, before its first use in this process."""
    # On GPUs some kernels add up in the order in which threads arrive, unless told not to; a
    # resumed run must have the bits of an uninterrupted one. The CPU's ignore the flag.
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
    """Ends the process with a remedy if this machine's host name does not lead to it.

    The CPU backend connects processes by gloo, which listens on the address of the host name; JAX
    has no option for another. JAX starts the CPU backend on machines with accelerators too, unless
    `JAX_PLATFORMS` leaves it out.
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
