"""Trains for hours and watches the memory of all processes and the temporary folder; Linux only.

    python experiments/benchmarks/soak.py --output soak.json --plot soak.html

The run is `experiments/quickstart.py` on smaller tiles, with worker processes, an evaluation and a
checkpoint every `--every` steps. After `--hours` it gets SIGTERM, as on a cluster, and must end by
itself. Memory is that of the run and its workers without the pages of files, such as libraries,
which other programs may share and the system may drop.

The program fails if the memory's median over the last tenth of the time is more than 5 % above the
median over the second tenth (the first one compiles), or if the run leaves a file in the temporary
folder or shared memory that it had mapped.
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
        samples, mapped, steps, code = soak(Path(folder), temporary, options)
        left = sorted(map(str, [*temporary.rglob("*"), *filter(Path.exists, mapped)]))
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
      The samples, each as (minutes, MiB); the shared memory that was mapped; the number of steps;
      the run's return code.

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
    samples, mapped = [], set()
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
                mebibytes, shared = memory_of(process.pid)
                samples.append((round(minutes, 2), mebibytes))
                mapped |= shared
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
    return samples, mapped, json.loads(last)["step"], code


def memory_of(session: int) -> tuple[float, set[Path]]:
    """Returns the MiB of a session's processes, and the shared memory that they have mapped.

    Pages that processes share are divided among them.
    """
    total, shared = 0, set()
    for folder in Path("/proc").iterdir():
        try:
            # The name of a program may hold spaces; what follows its bracket does not.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            sizes = (folder / "smaps_rollup").read_text().splitlines()
            maps = (folder / "maps").read_text().splitlines()
        except (OSError, IndexError):  # no process, or one that ended meanwhile
            continue
        total += sum(int(x.split()[1]) for x in sizes if x.startswith(("Pss_Anon:", "Pss_Shmem:")))
        shared |= {Path(x.split()[5]) for x in maps if str(SHARED_MEMORY) in x}
    return round(total / 1024, 1), shared


def windows(values: list[float]) -> tuple[float, float]:
    """Returns the medians over the second and the last tenth of the values."""
    tenth = max(len(values) // 10, 1)
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


def plot(samples: list[tuple[float, float]], steps: int) -> str:
    minutes, mebibytes = zip(*samples, strict=True)
    chart = line_chart("MiB over minutes", [Series("the run and its workers", minutes, mebibytes)])
    return page("Soak test", section(f"Memory of {steps:,} training steps", chart))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(SoakOptions, description=__doc__)))
