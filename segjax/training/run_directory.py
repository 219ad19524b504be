"""A run directory: what a run was asked to do, where it ran, and whether it may go on."""

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import jax

from segjax.files.atomic import write_json
from segjax.training import configuration

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "segjax")
_REPOSITORY = Path(__file__).resolve().parents[2]


class ChangedConfiguration(ValueError):
    """The directory holds a run with another configuration."""


def open_run(config, experiment_file: Path) -> bool:
    """Writes `config.json` and `environment.json`, or checks that they fit this configuration.

    Args:
      config: an `ExperimentConfig`.
      experiment_file: the file that defines the experiment, recorded so that the command line
        can rebuild it.

    Returns:
      Whether the directory held this run already.

    Raises:
      ChangedConfiguration: it holds another configuration, or that of another experiment file, and
        `config.accept_changes` is not set.
      ValueError: its `config.json` is damaged.
    """
    experiment_file = Path(experiment_file).resolve()
    path = config.workdir / "config.json"
    config.workdir.mkdir(parents=True, exist_ok=True)
    values = configuration.to_dict(config)
    # `segjax evaluate` may be called from another folder.
    values["data_dir"] = str(config.data_dir.expanduser().absolute())
    resumed = path.exists()
    if resumed:
        old = read_config(config.workdir)
        changes = configuration.differences(old["config"], values)
        # By name: the checkout may have moved. Two experiments may well take the same values.
        if Path(old["experiment"]).name != experiment_file.name:
            changes.insert(0, f"experiment: {old['experiment']} -> {experiment_file}")
        if changes and not config.accept_changes:
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
            "command": configuration.command_line(),
            "config": values,
        },
    )
    _write_environment(config.workdir / "environment.json")
    return resumed


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


def environment() -> dict:
    """Returns the versions, the commit and the devices of this process."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "backend": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }


def _write_environment(path):
    """Writes this process's environment; those of the run's earlier parts stay, under "earlier"."""
    now, earlier = environment(), []
    if path.exists():
        before = json.loads(path.read_text())
        earlier = before.pop("earlier", [])
        if before != now:
            earlier.append(before)
    write_json(path, now | {"earlier": earlier})


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of the checkout that segjax runs from; None for an installed package.

    That may lie within a checkout of something else, which does not track it.
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
