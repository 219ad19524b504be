"""A run directory: the run's configuration and environment, and the check before it is resumed."""

import importlib.metadata
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import jax

from segjax.files.atomic import write_bytes, write_json
from segjax.training import configuration
from segjax.training.experiment_files import experiments_folder, with_siblings

# Folder for a copy of the experiment file, whose original may be edited or deleted.
KEPT_EXPERIMENT = "experiment"

PEAKS = ("peak_memory_bytes", "device_peak_memory_bytes")

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "segjax")
_REPOSITORY = Path(__file__).resolve().parents[2]


class ChangedConfiguration(ValueError):
    """The directory holds a run with another configuration."""


def open_run(config, experiment_file: Path) -> bool:
    """Starts a run directory, or checks that it already holds a run of this configuration.

    Writes `config.json`, `environment.json`, and the folder `experiment/` with copies of the
    experiment file and of the files beside it that it uses (see
    `segjax.training.experiment_files.with_siblings`). Relative paths of the configuration are
    written as absolute ones, since later commands may start in another folder.

    Args:
      config: an `ExperimentConfig`.
      experiment_file: the file that defines the experiment. Its path is recorded, so that commands
        can rebuild the experiment.

    Returns:
      Whether the directory already held this run.

    Raises:
      ChangedConfiguration: the directory holds a run with another configuration or experiment file
        that has taken steps, and `config.accept_changes` is not set. A run that failed before its
        first step is replaced.
      ValueError: its `config.json` is damaged.
    """
    experiment_file = Path(experiment_file).resolve()
    path = config.workdir / "config.json"
    config.workdir.mkdir(parents=True, exist_ok=True)
    values = configuration.with_absolute_paths(configuration.to_dict(config), config)
    resumed = path.exists()
    if resumed:
        old = read_config(config.workdir)
        # Earlier versions recorded some paths as they were typed.
        before = configuration.with_absolute_paths(old["config"], config)
        changes = configuration.differences(before, values)
        # Two experiments may take the same values. Compare names, since a checkout may have moved.
        if Path(old["experiment"]).name != experiment_file.name:
            changes.insert(0, f"experiment: {old['experiment']} -> {experiment_file}")
        if changes and not config.accept_changes and has_begun(config.workdir):
            raise ChangedConfiguration(
                f"{config.workdir} holds a run with another configuration:\n  "
                + "\n  ".join(changes)
                + "\nTake another --workdir, or pass --accept-changes True to go on from its last "
                "checkpoint with the new values."
            )
    write_json(
        path,
        {
            "experiment": str(experiment_file),
            "command": command_line(),
            "config": values,
        },
    )
    _write_environment(config.workdir / "environment.json")
    if experiment_file.is_file():
        for name, file in with_siblings(experiment_file).items():
            kept = config.workdir.resolve() / KEPT_EXPERIMENT / name
            if kept != file:  # the copy may be run, too
                write_bytes(kept, file.read_bytes())
    return resumed


def has_begun(run: Path) -> bool:
    """Whether a run has logged a step or saved a checkpoint."""
    log = Path(run) / "metrics.jsonl"
    return bool(steps_on_disk(Path(run) / "checkpoints")) or (
        log.exists() and log.stat().st_size > 0
    )


def steps_on_disk(checkpoints: Path) -> list[int]:
    """Lists the steps of the complete checkpoints in a folder, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(int(entry.name) for entry in checkpoints.iterdir() if entry.name.isdecimal())


def find_experiment(run: Path) -> Path:
    """Returns the file to rebuild a run's experiment from.

    It is the original as long as the files that the run copied have not changed, since the
    original's folder may hold more; else the copy. Without a copy (of an earlier version), it is
    the recorded file or, if that is missing, segjax's own file of that name.

    Raises:
      FileNotFoundError: `run` is not a run directory, or it has no copy and the file is gone.
      ValueError: its `config.json` is damaged.
    """
    recorded = Path(read_config(run)["experiment"])
    kept = Path(run).resolve() / KEPT_EXPERIMENT
    # The copy has the place that it had in its package: exp.py, package/exp.py, ...
    names = [Path(*recorded.parts[start:]) for start in range(1, len(recorded.parts))]
    name = next((name for name in names if (kept / name).is_file()), None)
    if name is None:
        return _without_copy(recorded, run)
    root = recorded.parents[len(name.parts) - 1]
    unchanged = all(
        (root / file).is_file() and (root / file).read_bytes() == copy.read_bytes()
        for file, copy in with_siblings(kept / name).items()
    )
    return recorded if unchanged else kept / name


def _without_copy(recorded: Path, run: Path) -> Path:
    places = [recorded]
    if "experiments" in recorded.parts:  # of another checkout or wheel
        below = recorded.parts[recorded.parts.index("experiments") + 1 :]
        places.append(experiments_folder().joinpath(*below))
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"the experiment file {recorded} is not there any more, and {run} has no copy of it in "
        f"{KEPT_EXPERIMENT}/"
    )


def read_config(run: Path) -> dict:
    """Returns a run's `config.json`: its "experiment" file, "command" and "config".

    Raises:
      FileNotFoundError: `run` is not a run directory.
      ValueError: the file is damaged.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run directory: it has no config.json")
    try:
        values = json.loads(path.read_text())
        return {key: values[key] for key in ("experiment", "command", "config")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{path} is damaged: expected a JSON object with "experiment", "command" and "config" '
            f"({type(error).__name__}: {error})"
        ) from error


def command_line() -> str:
    """Returns the command that started this process, as it would be typed."""
    return shlex.join(["python", *sys.argv])


def environment() -> dict:
    """Returns the versions, the commit and the devices of this process."""
    devices, found = jax.devices(), versions()
    return {
        "python": found.pop("python"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "versions": found,
        "commit": commit(),
        "backend": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


def changed_versions(run: Path) -> list[str]:
    """Lists the versions that changed since the last part of a run, as "jax 0.10.2 -> 0.12.0".

    Call this before `open_run`, which records the new versions. A run may continue with other
    versions, but then it no longer equals an uninterrupted run bit for bit.
    """
    before = _read_environment(Path(run) / "environment.json")
    if before is None:
        return []
    old, new = {"python": before["python"], **before["versions"]}, versions()
    return [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]


def _write_environment(path):
    """Writes this process's environment and keeps those of earlier parts of the run."""
    now, earlier, before, peaks = environment(), [], _read_environment(path), {}
    if before is not None:
        earlier = before.pop("earlier", [])
        peaks = {name: before.pop(name) for name in PEAKS if name in before}
        if before != now:
            earlier.append(before)
    write_json(path, now | peaks | {"earlier": earlier})


def record_peak_memory(run: Path) -> None:
    """Adds this process's peak memory to `environment.json`, or keeps that of an earlier part.

    "peak_memory_bytes" is that of the process, as the operating system counts it.
    "device_peak_memory_bytes" is that of the fullest device, where a device counts it.
    """
    path = Path(run) / "environment.json"
    values = _read_environment(path)
    found = [process_peak_bytes(), _device_peak_bytes()]
    if values is not None:
        for name, peak in zip(PEAKS, found, strict=True):
            if peak is not None:
                values[name] = max(peak, values.get(name, 0))
        write_json(path, values)


def process_peak_bytes() -> int:
    """Returns the largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _device_peak_bytes() -> int | None:
    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)


def _processor() -> str:
    """Returns the name of the processor, such as "Intel(R) Xeon(R) Processor @ 2.50GHz"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _read_environment(path):
    """Returns the environment of the run's last part; None if the run is new."""
    return json.loads(path.read_text()) if path.exists() else None


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the commit of the checkout that segjax runs from; None for an installed package.

    An installed package may lie inside the checkout of another project, which does not track it.
    """

    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(_REPOSITORY), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "segjax/__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
