"""Trains what the ledger lists as jobs, within a number of hours, and records every result.

    python experiments/reproduce.py --hours 0.5 --data DIR

Jobs run in the order of `experiments/results/ledger.toml`, the most valuable ones first: those for
a GPU or TPU if JAX has one, else those for a CPU. A job prepares its data set, trains its row once
for each seed, and records the runs in the ledger. When the time is up, the training that runs saves
a checkpoint and ends; the same command goes on from there. A job that is recorded is left out, and
one that fails does not stop the next. At the end, the benchmark of models runs, if time is left,
and the tables of RESULTS.md and README.md are written.

DIR holds the folders of files that the jobs name as "source", and `weights`.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from segjax.commands.record import default_ledger
from segjax.ledger.record import read_record
from segjax.ledger.rows import Job, Ledger, Row, read_ledger
from segjax.training.meeting import TRY_AGAIN

ROOT = Path(__file__).resolve().parents[1]
SEGJAX = (sys.executable, "-c", "from segjax.cli import main; main()")
TIME_IS_UP = "time is up"
SAVING = 120.0  # seconds that a training may take to save its checkpoint


@dataclass(frozen=True)
class Options:
    """Options of the reproduction."""

    hours: float
    """Hours until trainings are ended."""
    data: Path
    """Folder of the data sets' files and of weights."""
    runs: Path = Path("runs/reproduce")
    """Folder of the run directories, of the prepared data sets and of the benchmark."""
    ledger: Path | None = None
    """Folder of the ledger; by default experiments/results."""
    documents: tuple[Path, ...] = ()
    """Documents whose tables are written; by default RESULTS.md and README.md."""
    benchmarks: bool = True
    """Run the benchmark of models at the end."""


class TimeUp(Exception):
    """The time for trainings is over."""


@dataclass(frozen=True)
class Clock:
    """Runs commands until a time, in seconds of `time.monotonic`."""

    end: float

    def run(self, command: list[str]) -> None:
        """Runs a command in the foreground.

        Raises:
          TimeUp: the time is over; a command that ran has been asked to save and end.
          subprocess.CalledProcessError: the command failed.
        """
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeUp
        print(f"\n$ {shlex.join(command)}", flush=True)
        places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        process = subprocess.Popen(command, env=environment)
        try:
            status = process.wait(left)
        except subprocess.TimeoutExpired as error:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SAVING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise TimeUp from error
        except BaseException:  # Ctrl+C reaches the command, too
            process.wait()
            raise
        if status:
            raise subprocess.CalledProcessError(status, command)


def main(options: Options) -> None:
    clock = Clock(time.monotonic() + 3600 * options.hours)
    ledger = read_ledger(options.ledger or default_ledger())
    ended: dict[str, str] = {}
    platform = jax_platform()
    device = "cpu" if platform == "cpu" else "accelerator"
    for job in (job for job in ledger.jobs if job.device == device):
        row = ledger.rows[job.row]
        if len(read_record(ledger, row) or ()) >= job.seeds:
            ended[job.row] = "recorded before"
            continue
        try:
            reproduce(job, row, ledger, options, clock)
            ended[job.row] = "recorded"
        except TimeUp:
            ended[job.row] = TIME_IS_UP
        except subprocess.CalledProcessError as error:
            ended[job.row] = f"failed: exit status {error.returncode} of {last_words(error.cmd)}"
    if options.benchmarks:
        ended["benchmark of models"] = time_models(options, clock, gpu=platform == "gpu")
    documents = ("--documents", *map(str, options.documents)) if options.documents else ()
    subprocess.run(
        [*SEGJAX, "results", "--write", "--ledger", str(ledger.folder), *documents], check=True
    )
    width = max(map(len, ended), default=0)
    print("\n" + "\n".join(f"{name:{width}}  {end}" for name, end in ended.items()))
    if any(end.startswith("failed") for end in ended.values()):
        sys.exit(1)
    if TIME_IS_UP in ended.values():
        print("The same command goes on from here.")
        sys.exit(TRY_AGAIN)


def reproduce(job: Job, row: Row, ledger: Ledger, options: Options, clock: Clock) -> None:
    """Prepares the data of a job, trains its seeds and records them."""
    prepared = options.runs / "data"
    prepare = [*SEGJAX, "data", "prepare", job.dataset, "--data-dir", str(prepared)]
    if job.source is not None:
        prepare += ["--source", str(options.data / job.source)]
    if not (prepared / job.dataset).exists():
        clock.run(prepare)
    runs = []
    for seed in range(job.seeds):
        run = options.runs / f"{row.id}-{seed}"
        runs.append(str(run))
        # Flags that come later win.
        own = ["--workdir", str(run), "--data-dir", str(prepared), "--seed", str(seed)]
        file = ROOT / "experiments" / row.experiment
        clock.run([sys.executable, str(file), *with_weights(row.flags, options.data), *own])
        if row.evaluate is not None:
            _, command, _, *flags = shlex.split(row.evaluate)
            clock.run([*SEGJAX, command, str(run), *flags])
    clock.run([*SEGJAX, "record", *runs, "--row", row.id, "--ledger", str(ledger.folder)])


def with_weights(flags: list[str], data: Path) -> list[str]:
    """Returns flags in which files of weights are those in the folder of data."""
    found = list(flags)
    for place, flag in enumerate(flags[:-1]):
        if flag.endswith(".weights"):
            found[place + 1] = str(data / "weights" / flags[place + 1])
    return found


def time_models(options: Options, clock: Clock, *, gpu: bool) -> str:
    """Runs the benchmark of models; returns how it ended."""
    if importlib.util.find_spec("torch") is None:
        return "left out: torch and torchvision, its rivals, are not installed"
    output = options.runs / "models.json"
    benchmark = ROOT / "experiments" / "benchmarks" / "models.py"
    flags = ["--output", str(output), *(["--gpu"] if gpu else [])]
    try:
        clock.run([sys.executable, str(benchmark), *flags])
    except TimeUp:
        return TIME_IS_UP
    except subprocess.CalledProcessError as error:
        return f"failed: exit status {error.returncode}"
    return str(output)


def jax_platform() -> str:
    """Returns the platform that trainings will use; a process of its own leaves the device free."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def last_words(command: list[str]) -> str:
    """Names a command by its program or, for segjax, by what follows it."""
    if tuple(command[: len(SEGJAX)]) == SEGJAX:
        return f"segjax {command[len(SEGJAX)]}"
    return Path(command[1]).name


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
