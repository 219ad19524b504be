"""Strict JAX for every test: no silent dtype or rank promotion, four simulated CPU devices."""

import os
from pathlib import Path

# Compiling takes most of the tests' time, and twice as long with LLVM's optimisations. Before JAX
# is imported, and for the processes that tests start.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
CACHE = Path(os.environ.get("SEGJAX_TEST_CACHE", Path.home() / ".cache" / "segjax-tests"))
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

MEMORY_MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def _release_programs():
    """Lets go of compiled programs in time.

    Each holds a few memory maps. Linux gives a process 65,530 by default, and XLA crashes when it
    gets no more; all tests in two processes came near.
    """
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def real_data():
    """The folder with real data sets, which the repository does not hold."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("SEGJAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SEGJAX_TEST_DATA to a folder that has it")
    return folder
