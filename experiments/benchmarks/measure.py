"""Times two implementations of the same work in turn, each in a process of its own.

A side is a function `module:function` that takes the case's arguments and returns a call to time.
It runs in `worker.py`, so torch and JAX share neither threads nor memory, and torch may live in
another environment. The sides alternate, so other load on the machine affects both.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Seconds before a call. Torch's OpenMP threads spin after their work, for up to 0.2 s in Intel's
# version. Without a pause they would take a core from the next side.
PAUSE = 0.3


@dataclass(frozen=True)
class Options:
    """Options of every comparison.

    Attributes:
      output: a JSON file, rewritten after each case.
      torch_python: an interpreter with torch and torchvision.
      rounds: how often each side is timed, after its first call and a warm-up call.
      threads: the number of threads that each side may use; None for all cores.
    """

    output: Path | None = None
    torch_python: str = sys.executable
    rounds: int = 7
    threads: int | None = None


@dataclass(frozen=True)
class Side:
    """One implementation of a case.

    Attributes:
      name: the side's name in the tables: "segjax", "torch", "torch compiled", …
      function: "module:function" of a file in this folder.
      python: the interpreter that runs it.
      arguments: arguments of this side alone, in addition to the case's.
    """

    name: str
    function: str
    python: str = sys.executable
    arguments: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Timing:
    """The measurements of one side of a case.

    Attributes:
      seconds: the time of each round, in order, without the warm-up.
      first_seconds: the time of the first call, compilation included.
      peak_bytes: peak memory of the device if it counts that, otherwise of the process.
      note: the side's own remark on its result.
      facts: numbers that the side measured itself.
    """

    seconds: tuple[float, ...]
    first_seconds: float
    peak_bytes: int
    note: str = ""
    facts: dict = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def as_json(self) -> dict:
        return {**asdict(self), "median": self.median, "quartiles": self.quartiles}


class Worker:
    """A process that runs one side of one case; see `worker.py` for the protocol."""

    def __init__(self, side: Side, arguments: dict, threads: int | None):
        path = [str(ROOT), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        if threads is not None:  # torch reads this at its start and would count all cores
            environment["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [side.python, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.take(side, arguments, threads)

    def take(self, side: Side, arguments: dict, threads: int | None):
        """Gives the process its work and calls it once."""
        self.side = side
        arguments = {**arguments, **dict(side.arguments)}
        request = {"function": side.function, "arguments": arguments, "threads": threads}
        self.first = self.ask(request)

    def ask(self, request: dict) -> dict:
        """Sends a request and waits for the answer.

        Raises:
          RuntimeError: the worker died; its own error is printed above.
        """
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.side.name}: {self.side.function} ended with {self.process.wait()}"
            )
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compare(
    sides: Sequence[Side],
    arguments: dict,
    *,
    rounds: int,
    threads: int | None = None,
    warm_up: int = 1,
    running: dict[tuple[str, str], Worker] | None = None,
) -> dict[str, Timing]:
    """Times the sides in turn, `rounds` times each, after the first call and `warm_up` more.

    Processes take seconds to start, so small cases may share them. `running` maps a side's name and
    interpreter to a process of an earlier case. Processes in it are reused, new ones are added, and
    the caller closes them. Peak memory then covers all cases so far.
    """
    workers = []
    try:
        for side in sides:
            worker = running.get((side.name, side.python)) if running else None
            if worker is None:
                worker = Worker(side, arguments, threads)
            else:
                worker.take(side, arguments, threads)
            workers.append(worker)
            if running is not None:
                running[side.name, side.python] = worker
        for _ in range(warm_up):
            for worker in workers:
                worker.ask({})
        seconds = [[] for _ in workers]
        for _ in range(rounds):
            for worker, spent in zip(workers, seconds, strict=True):
                time.sleep(PAUSE)
                spent.append(worker.ask({})["seconds"])
        last = [worker.ask({"finish": True}) for worker in workers]
    finally:
        for worker in workers if running is None else ():
            worker.close()
    return {
        worker.side.name: Timing(
            seconds=tuple(spent),
            first_seconds=worker.first["seconds"],
            peak_bytes=end["peak_bytes"],
            note=end.get("note", ""),
            facts=end.get("facts", {}),
        )
        for worker, spent, end in zip(workers, seconds, last, strict=True)
    }


def run_once(side: Side, **arguments):
    """Runs a side alone, for the files it writes."""
    Worker(side, arguments, None).close()


class Results:
    """Prints a line for each case and writes all cases to a JSON file."""

    def __init__(self, options: Options, *, pythons: Sequence[str] = ()):
        self.options = options
        pythons = [sys.executable, options.torch_python, *pythons]
        self.record = {"environment": environment(pythons)}
        self.record |= {"rounds": options.rounds, "threads": options.threads, "cases": []}
        for name in ("processor", "cores", "load_before", "commit"):
            print(f"{name}: {self.record['environment'][name]}")
        print(", ".join(f"{k} {v}" for k, v in self.record["environment"]["versions"].items()))

    def add(self, name: str, timings: dict[str, Timing], **facts):
        """Records a case, comparing the first side with each of the others."""
        first, *others = timings.values()
        case = {"name": name, "load": os.getloadavg()[0], **facts}
        case["sides"] = {side: timing.as_json() for side, timing in timings.items()}
        names = list(timings)[1:]
        case["ratios"] = {
            other: first.median / timing.median for other, timing in zip(names, others, strict=True)
        }
        self.record["cases"].append(case)
        print(line_of(case), flush=True)
        if self.options.output is not None:
            self.options.output.write_text(json.dumps(self.record, indent=1) + "\n")


def line_of(case: dict) -> str:
    """Returns a case as one line: medians in milliseconds with quartiles, and ratios."""
    parts = []
    for side, timing in case["sides"].items():
        low, high = (1000 * seconds for seconds in timing["quartiles"])
        parts.append(f"{side} {1000 * timing['median']:.5g} ms ({low:.5g}–{high:.5g})")
    parts += [f"ratio to {side} {ratio:.2f}" for side, ratio in case["ratios"].items()]
    parts += [case["agreement"]] if case.get("agreement") else []
    return f"{case['name']}: " + ", ".join(parts)


def environment(pythons: Sequence[str]) -> dict:
    """Returns the hardware, every interpreter's versions, the commit, the load and the time."""
    report = "import json, worker; print(json.dumps(worker.versions()))"
    versions = {}
    for python in dict.fromkeys(pythons):
        output = subprocess.run(
            [python, "-c", report],
            env={**os.environ, "PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        versions |= {k: v for k, v in json.loads(output).items() if k not in versions}
    return {
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return name or platform.processor()


def _commit() -> str:
    """Returns this file's commit; "unknown" outside a checkout or without git."""

    def git(*arguments):
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        # New results of earlier commands do not change the measured code.
        changes = git("status", "--short", "--", ".", ":!experiments/benchmarks/results")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
