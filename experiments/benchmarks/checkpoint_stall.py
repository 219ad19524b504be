"""Times how much asynchronous checkpoints cost a training run, and how much one save costs.

    python experiments/benchmarks/checkpoint_stall.py [--torch-python PYTHON]

The run is `experiments/quickstart.py` on smaller tiles, without evaluation, logging each step and
ended after `--steps`. Runs with a checkpoint every `--every` steps alternate with runs without.

A checkpoint is copied off the device and written in the background during the `WINDOW` steps after
it. The extra time of these steps, compared with all other steps, is the share of the run that
checkpoints add. A stall is the longest of these steps minus the median step. The same measures on
the run without checkpoints show how much of both is the machine's noise.

The benchmark also times single saves of larger states: how long training stands still, and how long
until the checkpoint is complete on disk. `torch.save`, as training scripts call it, blocks training
for all of that time.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import ROOT, Options, Results, Side, Timing, compare
from prepared_data import prepare_quietly

WINDOW = 10  # steps
NEVER = 10**9


@dataclass(frozen=True)
class StallOptions(Options):
    """Options of this comparison."""

    rounds: int = 1
    """Number of runs with checkpoints, and of runs without."""
    steps: int = 230
    every: int = 100
    tile: int = 44
    """Side of the network's output; the quickstart's own is 140."""
    saves: int = 5
    """Number of timed saves of each larger state."""
    networks: tuple[str, ...] = ("unet", "deeplabv3")
    """Networks whose states are saved on their own."""


def main(options: StallOptions):
    results = Results(options)
    with tempfile.TemporaryDirectory() as folder:
        prepare_quietly("synthetic_cells", Path(folder))
        training_run(Path(folder), options, every=NEVER, steps=1)  # compiles for all later runs
        runs = {"with checkpoints": [], "without": []}
        for _ in range(options.rounds):
            runs["with checkpoints"].append(
                training_run(Path(folder), options, every=options.every)
            )
            runs["without"].append(training_run(Path(folder), options, every=NEVER))
    timings = {name: timing_of(found, options.every) for name, found in runs.items()}
    name = f"training, {options.steps} steps, a checkpoint every {options.every}"
    results.add(name, timings)
    for name, timing in timings.items():
        print(
            f"  {name}: after checkpoints {100 * timing.facts['share']:.2f} % of the run, longest "
            f"stall {1000 * timing.facts['longest_stall']:.0f} ms, median step "
            f"{1000 * timing.facts['median_step']:.0f} ms"
        )
    for network in options.networks:
        sides = [
            Side("segjax", "segjax_checkpoint:Save"),
            Side("torch.save", "torch_checkpoint:Save", options.torch_python),
        ]
        saves = compare(sides, {"network": network}, rounds=options.saves, threads=options.threads)
        size = saves["segjax"].facts["bytes"]
        results.add(f"stall of one save, {network}, {size / 2**20:.0f} MiB", saves)
        print(f"  segjax: complete on disk after {saves['segjax'].facts['finished_seconds']:.2f} s")


def training_run(data: Path, options: StallOptions, *, every: int, steps: int | None = None):
    """Runs the quickstart and ends it after some steps.

    Returns:
      The time at which each step was logged, in seconds, [steps].

    Raises:
      RuntimeError: the run ended by itself.
    """
    steps = options.steps if steps is None else steps
    with tempfile.TemporaryDirectory() as folder:
        workdir, output = Path(folder) / "run", Path(folder) / "output"
        command = [
            *(sys.executable, str(ROOT / "experiments" / "quickstart.py")),
            *(
                "--workdir",
                str(workdir),
                "--data-dir",
                str(data),
                "--network.tile",
                str(options.tile),
            ),
            *("--train.num-steps", str(NEVER), "--train.eval-every", "None"),
            *("--train.log-every", "1", "--train.checkpoint-every", str(every)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(data / "compiled")
        with output.open("w") as file:
            process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            while len(times := logged(workdir / "metrics.jsonl")) < steps:
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended by itself: {output.read_text()[-2000:]}")
                time.sleep(0.5)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return times[:steps]


def logged(metrics: Path) -> list[float]:
    if not metrics.exists():
        return []
    lines = metrics.read_text().split("\n")[:-1]
    return [json.loads(line)["elapsed_seconds"] for line in lines]


def timing_of(runs: list[list[float]], every: int) -> Timing:
    """Returns the time of whole runs from their second step on; facts tell the checkpoints' part.

    A checkpoint is saved after its step is logged, so it delays the next step.
    """
    shares, stalls, medians = [], [], []
    for times in runs:
        intervals = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        # intervals[i] lies between steps i + 2 and i + 3.
        windows = [slice(start, start + WINDOW) for start in range(every - 2, len(times), every)]
        after = [interval for window in windows for interval in intervals[window]]
        usual = (sum(intervals) - sum(after)) / (len(intervals) - len(after))
        shares.append((sum(after) - usual * len(after)) / sum(intervals))
        medians.append(statistics.median(intervals))
        stalls += [max(intervals[w]) - medians[-1] for w in windows if intervals[w]]
    facts = {
        "share": statistics.median(shares),
        "longest_stall": max(stalls),
        "stalls": stalls,
        "median_step": statistics.median(medians),
    }
    seconds = tuple(times[-1] - times[1] for times in runs)
    return Timing(seconds, runs[0][0], 0, facts=facts)


if __name__ == "__main__":
    main(tyro.cli(StallOptions, description=__doc__))
