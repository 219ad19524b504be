"""Strict JAX for every test: no silent dtype or rank promotion, and four simulated CPU devices."""

import contextlib
import os
from pathlib import Path

# Compiling takes most of the tests' time, and twice as long with all of XLA's optimisations. JAX
# reads this when it is imported, here and in the processes that tests start. Tests marked
# "optimized" compile as users do.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

import jax
import pytest

from tests.optimization import as_for_users

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
    """Releases compiled programs before the process runs out of memory maps.

    Each program holds a few. Linux allows a process 65,530 by default, and XLA crashes without
    more; the whole suite in two processes came near.
    """
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _optimization(request):
    """Compiles tests that are marked "optimized" as users do."""
    marked = request.node.get_closest_marker("optimized") is not None
    with as_for_users() if marked else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def real_data():
    """The folder with real data sets, which are not in the repository."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("SEGJAX_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SEGJAX_TEST_DATA to a folder that has it")
    return folder


@pytest.fixture
def few_cells(monkeypatch):
    """Limits the generated cells to nine pictures, where nothing is learned from them."""
    from segjax.data.datasets.synthetic_cells import (
        synthetic_cells_dataset_builder,
    )  # takes a second

    for split, size in {"train": 5, "validation": 2, "test": 2}.items():
        monkeypatch.setitem(synthetic_cells_dataset_builder.SPLITS, split, size)
