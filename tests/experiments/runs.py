"""Experiments as processes of their own, and what their runs leave behind."""

import os
import socket
import sys
from pathlib import Path

import jax
import numpy as np

from segjax.training.checkpoint import Checkpoints
from segjax.training.logging import WALL_CLOCK_FIELDS, read_metrics
from tests.processes import started

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.py"
TINY = ROOT / "tests" / "training" / "tiny.py"


def start(file, workdir, *arguments, devices=1, cache=None):
    """An experiment as a process of a `with` block; its output is beside its run directory."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache or jax.config.jax_compilation_cache_dir),
    }
    command = [sys.executable, str(file), "--workdir", str(workdir), *arguments]
    return started(command, output=workdir.with_suffix(".log"), environment=environment)


def run(file, workdir, *arguments, devices=1):
    """Runs an experiment to its end."""
    with start(file, workdir, *arguments, devices=devices) as process:
        finish(process, workdir)


def finish(process, workdir):
    """Waits for the end of a process that should succeed."""
    assert process.wait(timeout=300) == 0, workdir.with_suffix(".log").read_text()[-4000:]


def logged(workdir):
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK_FIELDS} for line in lines]


def final_arrays(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.read(checkpoints.latest_step)
        place = checkpoints.data(checkpoints.latest_step)
    return [np.asarray(x) for x in jax.tree.leaves(state)], place


def assert_same_bits(workdir, expected):
    """Two runs have the same log and the same last checkpoint."""
    assert logged(workdir) == logged(expected)
    (arrays, place), (others, other_place) = final_arrays(workdir), final_arrays(expected)
    assert place == other_place
    assert all(np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def started_together(stack, workdir, *arguments, each=([], []), devices=2, file=TINY):
    """Starts a run of several processes, each with so many devices and arguments of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ("--distributed.coordinator-address", f"127.0.0.1:{port}")
    together += ("--distributed.num-processes", str(len(each)))
    processes = []
    for index in range(len(each)):
        which = (*together, "--distributed.process-id", str(index), *each[index])
        process = start(file, workdir, *arguments, *which, devices=devices)
        processes.append(stack.enter_context(process))
    return processes
