"""Trains for hours and watches the memory of all processes and the temporary folder; Linux only.

    python experiments/benchmarks/soak.py --output soak.json --plot soak.html

The run is `experiments/quickstart.py` on smaller tiles, with worker processes, an evaluation and a
checkpoint every `--every` steps. After `--hours` it gets SIGTERM, as on a cluster, and must end by
itself. Memory is what the system counts for the run and its workers, with shared pages divided
among them ("PSS").

The program fails if the memory's median over the last tenth of the time is more than 5 % above the
median over the second tenth (the first one compiles), or if the run leaves a file in the temporary
folder or in shared memory.
"""

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
from checkpoint_stall import NEVER
from measure import ROOT
from prepared_data import prepare_quietly
from tqdm import tqdm

from segjax.report.charts import Series, line_chart
from segjax.report.page import page, section
from segjax.training.run_directory import environment

MOST_GROWTH = 0.05
SHARED_MEMORY = Path("/dev/shm")
SECONDS_TO_END = 300
STOPPED = 130  # the return code of a run that a signal stopped


@dataclass(frozen=True)
class SoakOptions:
    """Options of the soak test.

    Attributes:
      output: a JSON file for the samples and the verdict.
      plot: an HTML page with the curve.
      hours: how long the run trains.
      seconds_between: seconds between two samples.
      workers: the loader's worker processes.
      tile: side of the network's output; the quickstart's own is 140.
      every: steps between two checkpoints, and between two evaluations.
    """

    output: Path
    plot: Path
    hours: float = 2.0
    seconds_between: float = 10.0
    workers: int = 1
    tile: int = 44
    every: int = 500


def main(options: SoakOptions) -> int:
    with tempfile.TemporaryDirectory() as folder:
        prepare_quietly("synthetic_cells", Path(folder) / "data")
        temporary = Path(folder) / "temporary"
        temporary.mkdir()
        shared_before = names_in(SHARED_MEMORY)
        samples, steps, code = soak(Path(folder), temporary, options)
        left = sorted(names_in(temporary) | (names_in(SHARED_MEMORY) - shared_before))
    early, late = windows([mebibytes for _, mebibytes in samples])
    growth = late / early - 1
    results = {
        "command": sys.argv,
        "environment": environment(),
        "steps": steps,
        "return_code": code,
        "left_behind": left,
        "early_mebibytes": early,
        "late_mebibytes": late,
        "growth": growth,
        "samples": samples,
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    options.plot.write_text(plot(samples, steps))
    print(
        f"{steps:,} steps in {samples[-1][0]:.0f} minutes; memory {early:.0f} MiB early, {late:.0f}"
        f" MiB late ({100 * growth:+.1f} %); left behind: {', '.join(left) or 'nothing'}; the run "
        f"ended with {code}"
    )
    return int(growth > MOST_GROWTH or bool(left) or code != STOPPED)


def soak(folder: Path, temporary: Path, options: SoakOptions):
    """Runs the training and samples its memory.

    Returns:
      The samples, each as (minutes, MiB); the number of steps; the run's return code.

    Raises:
      RuntimeError: the run ended by itself.
    """
    workdir, output = folder / "run", folder / "output"
    command = [
        *(sys.executable, str(ROOT / "experiments" / "quickstart.py")),
        *("--workdir", str(workdir), "--data-dir", str(folder / "data")),
        *("--network.tile", str(options.tile), "--train.num-workers", str(options.workers)),
        *("--train.num-steps", str(NEVER), "--optimizer.schedule", "constant"),
        *("--train.eval-every", str(options.every), "--train.checkpoint-every", str(options.every)),
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    samples = []
    with output.open("w") as file:
        process = subprocess.Popen(
            command, env=variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        start = time.monotonic()
        with tqdm(total=round(60 * options.hours), unit="min", desc="soak") as bar:
            while (minutes := (time.monotonic() - start) / 60) < 60 * options.hours:
                if process.poll() is not None:
                    raise RuntimeError(f"the run ended by itself: {output.read_text()[-2000:]}")
                samples.append((round(minutes, 2), session_mebibytes(process.pid)))
                bar.update(int(minutes) - bar.n)
                bar.set_postfix_str(f"{samples[-1][1]:.0f} MiB")
                time.sleep(options.seconds_between)
        process.send_signal(signal.SIGTERM)
        code = process.wait(SECONDS_TO_END)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = (workdir / "metrics.jsonl").read_text().splitlines()[-1]
    return samples, json.loads(last)["step"], code


def session_mebibytes(session: int) -> float:
    """Sums the memory of a session's processes, shared pages divided among those that share."""
    total = 0
    for folder in Path("/proc").iterdir():
        try:
            # The name of a program may hold spaces; what follows its bracket does not.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except (OSError, IndexError):  # no process, or one that ended meanwhile
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return round(total / 1024, 1)


def windows(values: list[float]) -> tuple[float, float]:
    """Returns the medians over the second and the last tenth of the values."""
    tenth = max(len(values) // 10, 1)
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def plot(samples: list[tuple[float, float]], steps: int) -> str:
    minutes, mebibytes = zip(*samples, strict=True)
    chart = line_chart("MiB over minutes", [Series("the run and its workers", minutes, mebibytes)])
    return page("Soak test", section(f"Memory of {steps:,} training steps", chart))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(SoakOptions, description=__doc__)))
