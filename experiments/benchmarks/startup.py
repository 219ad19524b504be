"""Times a process from its start to the first training step.

    python experiments/benchmarks/startup.py [--torch-python PYTHON] [--output startup.json]

For the train steps of `models.py` at small sizes, the time covers everything up to the end of the
first step: imports, initial weights, compilation and the step. "cold" starts with an empty folder
of compiled programs, "second start" with the folder that the cold start filled. torch runs eagerly.

For `experiments/quickstart.py`, in a fresh run directory with its data prepared, the time covers
everything up to the first line of metrics.jsonl, which logs the first step. The run is then ended.

The script uses its own folder of compiled programs, so the user's cache has no effect.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import tyro
from measure import ROOT, Options, Results, Side, Timing, Worker
from prepared_data import prepare_quietly

STEPS = {
    "unet": ("semantic_train_step", {"network": "unet", "batch": 2, "size": (128, 128)}),
    "deeplabv3": ("semantic_train_step", {"network": "deeplabv3", "batch": 2, "size": (129, 129)}),
    "mask_rcnn": ("instance_train_step", {"batch": 1, "size": (320, 320), "objects": 8}),
}


@dataclass(frozen=True)
class StartupOptions(Options):
    """Options of this comparison."""

    rounds: int = 1
    """Number of starts of each kind."""
    networks: tuple[str, ...] = tuple(STEPS)
    quickstart: bool = True


def main(options: StartupOptions):
    results = Results(options)
    for network in options.networks:
        function, arguments = STEPS[network]
        arguments = {**arguments, "bfloat16": False}
        segjax = Side("segjax", f"segjax_models:{function}")
        torch = Side("torch", f"torch_models:{function}", options.torch_python)
        starts = {"segjax, second start": [], "segjax, cold": [], "torch": []}
        for _ in range(options.rounds):
            with no_compiled_programs():
                for name in ("segjax, cold", "segjax, second start"):
                    starts[name].append(first_step(segjax, arguments, options.threads))
            starts["torch"].append(first_step(torch, arguments, options.threads))
        results.add(f"{network}, start to first step", merged(starts))
    if options.quickstart:
        with tempfile.TemporaryDirectory() as data:
            prepare_quietly("synthetic_cells", Path(data))
            starts = {"second start": [], "cold": []}
            for _ in range(options.rounds):
                with no_compiled_programs():
                    for name in ("cold", "second start"):
                        starts[name].append(first_logged_step(Path(data)))
        results.add("quickstart, start to first logged step", merged(starts))


@contextmanager
def no_compiled_programs():
    """Gives processes started within an empty folder for JAX's compiled programs."""
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"JAX_COMPILATION_CACHE_DIR": folder}),
    ):
        yield


def first_step(side: Side, arguments: dict, threads: int | None) -> Timing:
    """Starts a worker and times it to the end of its first call, which is the first step.

    "first_seconds" is the time of that step alone.
    """
    start = time.perf_counter()
    worker = Worker(side, arguments, threads)
    spent = time.perf_counter() - start
    next_step = worker.ask({})["seconds"]
    peak = worker.ask({"finish": True})["peak_bytes"]
    worker.close()
    first = worker.first["seconds"]
    return Timing((spent,), first, peak, facts={"next_step_seconds": next_step})


def first_logged_step(data: Path) -> Timing:
    """Starts the quickstart and ends it when its first step is logged.

    Raises:
      RuntimeError: the quickstart ended by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "experiments" / "quickstart.py")]
        command += ["--workdir", str(workdir), "--data-dir", str(data), "--train.log-every", "1"]
        start = time.perf_counter()
        with (Path(folder) / "output").open("w+") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            metrics = workdir / "metrics.jsonl"
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(0.02)
            spent = time.perf_counter() - start
            if process.returncode is not None:
                output.seek(0)
                raise RuntimeError(f"the quickstart ended by itself: {output.read()[-2000:]}")
            os.killpg(process.pid, signal.SIGKILL)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
    return Timing((spent,), spent, 1024 * usage.ru_maxrss)


def merged(starts: dict[str, list[Timing]]) -> dict[str, Timing]:
    """Merges the timings of each kind of start into one."""
    return {
        name: Timing(
            seconds=tuple(timing.seconds[0] for timing in timings),
            first_seconds=timings[0].first_seconds,
            peak_bytes=max(timing.peak_bytes for timing in timings),
            facts={
                "first_call_seconds": [timing.first_seconds for timing in timings],
                "next_call_seconds": [timing.facts.get("next_step_seconds") for timing in timings],
            },
        )
        for name, timings in starts.items()
    }


if __name__ == "__main__":
    main(tyro.cli(StartupOptions, description=__doc__))
