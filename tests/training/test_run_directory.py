"""What a run directory records, and when it refuses another run."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from segjax.training import configuration, run_directory
from segjax.training.configuration import ExperimentConfig, OptimizerConfig, TrainConfig
from segjax.training.run_directory import (
    ChangedConfiguration,
    changed_versions,
    environment,
    open_run,
    read_config,
)

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def config(tmp_path):
    return ExperimentConfig(workdir=tmp_path / "runs" / "a")


def refuse_to_finish(monkeypatch):
    """Makes every write of a file fail half-way."""
    whole = Path.write_bytes

    def half(path, content):
        whole(path, content[: len(content) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(folder, *names):
    """Creates a repository with files of these names; returns its commit."""
    git(folder, "init")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1\n")
        git(folder, "add", name)
    git(folder, "commit", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_a_new_run_is_written_down_and_found_again(config, monkeypatch):
    monkeypatch.setattr("sys.argv", ["my unet.py", "--seed", "3"])
    assert not open_run(config, Path("experiments") / "unet.py")
    assert {path.name for path in config.workdir.iterdir()} == {"config.json", "environment.json"}
    assert read_config(config.workdir) == {
        "experiment": str(Path("experiments/unet.py").absolute()),
        "command": "python 'my unet.py' --seed 3",
        "config": configuration.to_dict(config) | {"data_dir": str(Path("data").absolute())},
    }
    assert open_run(config, Path("experiments") / "unet.py")


def take_a_step(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')


def test_before_the_first_step_another_configuration_replaces_the_first(config):
    """A start that failed, over data or weights, may be corrected."""
    open_run(config, "unet.py")
    (config.workdir / "metrics.jsonl").write_text("")
    (config.workdir / "checkpoints").mkdir()
    other = dataclasses.replace(config, seed=4)
    open_run(other, "drive.py")
    assert read_config(config.workdir)["config"]["seed"] == 4
    for begin in (take_a_step, lambda run: (run / "checkpoints" / "2").mkdir()):
        begin(config.workdir)
        with pytest.raises(ChangedConfiguration):
            open_run(config, "drive.py")
        (config.workdir / "metrics.jsonl").write_text("")


def test_another_configuration_is_refused_with_each_difference(config):
    open_run(config, "unet.py")
    take_a_step(config.workdir)
    before = (config.workdir / "config.json").read_bytes()
    other = dataclasses.replace(
        config, seed=4, train=TrainConfig(num_steps=7), optimizer=OptimizerConfig(momentum=0.5)
    )
    with pytest.raises(ChangedConfiguration) as refusal:
        open_run(other, "unet.py")
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    assert lines[1:-1] == [
        "seed: 0 -> 4",
        "train.num_steps: 1000 -> 7",
        "optimizer.momentum: 0.9 -> 0.5",
    ]
    assert str(config.workdir) in lines[0]
    assert "--accept-changes True" in lines[-1]
    assert (config.workdir / "config.json").read_bytes() == before


def test_another_configuration_is_taken_over_if_the_user_says_so(config):
    open_run(config, "unet.py")
    other = dataclasses.replace(config, seed=4, accept_changes=True)
    assert open_run(other, "unet.py")
    assert read_config(config.workdir)["config"]["seed"] == 4
    assert open_run(dataclasses.replace(config, seed=4), "unet.py")


def test_what_changes_no_numbers_may_change(config):
    open_run(config, "unet.py")
    train = TrainConfig(checkpoint_every=7, num_workers=3)
    assert open_run(dataclasses.replace(config, data_dir=Path("b"), train=train), "unet.py")
    assert read_config(config.workdir)["config"]["train"]["checkpoint_every"] == 7


@dataclasses.dataclass(frozen=True)
class Files:
    images: Path | None = None


@dataclasses.dataclass(frozen=True)
class WithPaths(ExperimentConfig):
    files: Files = Files()


def test_paths_are_recorded_for_commands_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = WithPaths(workdir=Path("run"), files=Files(Path("images")))
    assert configuration.paths(config) == ["data_dir", "files.images"]
    open_run(config, "mine.py")
    take_a_step(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    recorded = json.loads(path.read_text())
    assert recorded["config"]["files"] == {"images": str(tmp_path / "images")}
    recorded["config"]["files"] = {"images": "images"}  # by an earlier version
    path.write_text(json.dumps(recorded))
    assert open_run(config, "mine.py")
    other = dataclasses.replace(config, files=Files(Path("other")))
    with pytest.raises(ChangedConfiguration, match=r"files.images: \S+images -> \S+other"):
        open_run(other, "mine.py")


def test_the_run_of_another_experiment_is_refused_though_its_values_are_the_same(config):
    open_run(config, "unet/u373.py")
    take_a_step(config.workdir)
    with pytest.raises(ChangedConfiguration, match=r"experiment: \S+u373.py -> \S+dic_hela.py"):
        open_run(config, "unet/dic_hela.py")
    assert open_run(config, "moved/checkout/u373.py")


def test_a_write_that_fails_leaves_the_old_configuration_whole(config, monkeypatch):
    open_run(config, "unet.py")
    before = (config.workdir / "config.json").read_bytes()
    refuse_to_finish(monkeypatch)
    with pytest.raises(OSError, match="no space left"):
        open_run(dataclasses.replace(config, seed=4, accept_changes=True), "unet.py")
    assert (config.workdir / "config.json").read_bytes() == before


def test_a_first_write_that_fails_leaves_no_run(config, monkeypatch):
    with monkeypatch.context() as patched:
        refuse_to_finish(patched)
        with pytest.raises(OSError, match="no space left"):
            open_run(config, "unet.py")
    assert not open_run(config, "unet.py")
    assert {path.suffix for path in config.workdir.iterdir()} == {".json"}


@pytest.mark.parametrize("content", ["", '{"config": {', "[]", '{"config": {}}', "\xff"])
def test_a_damaged_configuration_is_named(config, content):
    config.workdir.mkdir(parents=True)
    path = config.workdir / "config.json"
    path.write_bytes(content.encode("latin-1"))
    for call in (lambda: read_config(config.workdir), lambda: open_run(config, "unet.py")):
        with pytest.raises(ValueError, match=r"runs.a.config\.json is damaged"):
            call()
    assert path.read_bytes() == content.encode("latin-1")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="is not a run directory: it has no config"):
            read_config(folder)


def test_the_environment_says_versions_and_devices():
    found = json.loads(json.dumps(environment()))
    assert found["versions"]["jax"] == jax.__version__
    assert set(found["versions"]) >= {"jaxlib", "flax", "optax", "numpy", "grain"}
    assert (found["backend"], found["device_count"]) == ("cpu", jax.device_count())
    assert found["device_kind"] == jax.devices()[0].device_kind
    assert (found["process_count"], found["cpu_count"]) == (1, os.cpu_count())


def test_the_version_of_what_is_not_installed_is_none(monkeypatch):
    monkeypatch.setattr(run_directory, "_PACKAGES", ("numpy", "no-such-package"))
    assert environment()["versions"]["no-such-package"] is None


@needs_git
def test_the_commit_is_that_of_the_checkout_and_says_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_REPOSITORY", tmp_path)
    commit = committed(tmp_path, "segjax/__init__.py")
    assert environment()["commit"] == commit
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "untracked").write_text("a")
    assert environment()["commit"] == commit
    (tmp_path / "segjax/__init__.py").write_text("2\n")
    assert environment()["commit"] == f"{commit} with uncommitted changes"


@needs_git
def test_a_package_installed_within_another_repository_has_no_commit(tmp_path, monkeypatch):
    committed(tmp_path, "paper.tex")
    installed = tmp_path / ".venv" / "site-packages"
    (installed / "segjax").mkdir(parents=True)
    (installed / "segjax" / "__init__.py").write_text("")
    monkeypatch.setattr(run_directory, "_REPOSITORY", installed)
    assert environment()["commit"] is None


def test_without_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "_REPOSITORY", tmp_path)
    assert environment()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def test_the_environments_of_earlier_parts_of_a_run_are_kept(config, monkeypatch):
    for commit in ("a", "a", "b", "c"):
        monkeypatch.setattr(run_directory, "commit", lambda commit=commit: commit)
        open_run(config, __file__)
    written = json.loads((config.workdir / "environment.json").read_text())
    assert written["commit"] == "c"
    assert [earlier["commit"] for earlier in written["earlier"]] == ["a", "b"]


def test_changed_versions_are_those_since_the_last_part_of_the_run(config):
    assert changed_versions(config.workdir) == []
    open_run(config, __file__)
    assert changed_versions(config.workdir) == []
    path = config.workdir / "environment.json"
    other = json.loads(path.read_text())
    now = dict(other["versions"])
    other["python"], other["versions"]["jax"] = "3.0.0", "0.1.2"
    del other["versions"]["grain"]
    path.write_text(json.dumps(other))
    assert changed_versions(config.workdir) == [
        f"python 3.0.0 -> {platform.python_version()}",
        f"jax 0.1.2 -> {now['jax']}",
        f"grain None -> {now['grain']}",
    ]
    for _ in range(2):  # the part with other versions is no longer the last
        open_run(config, __file__)
        assert changed_versions(config.workdir) == []
