"""JAX's settings for a run, made before its first use in this process."""

import os
from pathlib import Path

import jax

from segjax.training.configuration import ExperimentConfig


def set_up(config: ExperimentConfig):
    """Sets the compile cache, deterministic kernels and the processes of a distributed run."""
    # By default some GPU kernels add in the order in which threads arrive. A resumed run must have
    # the bits of an uninterrupted one. CPUs ignore the flag.
    flag = "--xla_gpu_deterministic_ops"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=true".strip()
    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "segjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    distributed = config.distributed
    if distributed.auto or distributed.coordinator_address:
        jax.distributed.initialize(
            distributed.coordinator_address, distributed.num_processes, distributed.process_id
        )
