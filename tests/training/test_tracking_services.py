"""W&B, MLflow and trackio themselves, each on this machine alone."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from segjax.training.logging import MetricsLog
from segjax.training.run_directory import open_run
from segjax.training.tracking import open_trackers
from tests.training import tiny

# What the packages warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
PICTURE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
LOSSES = {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.0625}


def needs(name):
    return pytest.importorskip(name, reason=f"the extra {name!r} is not installed")


def log(workdir, track, steps, *, resume_step=None):
    """Logs like a run from a checkpoint on; returns the identifier of the tracked run."""
    config = tiny.Config(workdir=workdir, track=track, track_project="cells")
    open_run(config, tiny.__file__)
    said = []
    trackers = open_trackers(config, say=said.append)
    with MetricsLog(workdir, resume_step=resume_step, trackers=trackers) as writer:
        for step in steps:
            writer.metrics(step, "train", {"loss": LOSSES[step], "iou of λ": 0.5})
        writer.metrics(steps[-1], "validation", {"mean_iou": float("nan"), "kept": 2})
        writer.pictures(steps[-1], {"validation/été 1": PICTURE})
    assert said == []
    return json.loads((workdir / "tracking.json").read_text())[track]["id"]


def killed_and_resumed(workdir, track):
    first = log(workdir, track, [1, 2, 3])
    second = log(workdir, track, [2, 3, 4], resume_step=1)
    assert first == second
    return first


def test_mlflow_keeps_one_run_with_each_step_once(tmp_path, monkeypatch):
    mlflow = needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # MLflow puts its files there
    mlflow.set_tracking_uri(None)
    run_id = killed_and_resumed(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [*LOSSES.items()]
    assert [each.step for each in client.get_metric_history(run_id, "validation/kept")] == [3, 4]
    run = client.get_run(run_id)
    assert set(run.data.metrics) == {"train/loss", "train/iou of _", "validation/kept"}
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.num_steps"] == "6"
    assert client.get_experiment(run.info.experiment_id).name == "cells"
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert run.data.tags.get("mlflow.source.git.commit") == environment["commit"]
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/config.json")["config"]["seed"] == 0
    images = [each.path for each in client.list_artifacts(run_id, "images") if "png" in each.path]
    assert len(images) == 2


def records(content):
    """The records of W&B's file: LevelDB's log format after a header of 7 bytes."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768  # in this block; a header never crosses its end
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield whole
            whole = b""


def test_wandb_offline_has_the_whole_run_in_its_last_part(tmp_path, monkeypatch):
    wandb = needs("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_id = killed_and_resumed(tmp_path / "run", "wandb")
    wandb.teardown()  # W&B's own process may still be writing
    parts = sorted(tmp_path.glob(f"run/wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(parts) == 2
    rows, configs = [], {}
    for data in records(parts[-1].read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        for item in record.run.config.update:
            configs[item.key] = json.loads(item.value_json)
        if record.history.item:
            row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            rows.append((int(row["step"]), row))
    losses = [(step, float(row["train/loss"])) for step, row in rows if "train/loss" in row]
    assert losses == [*LOSSES.items()]
    assert [step for step, row in rows if "validation/été 1" in row] == [4]
    assert configs["train"]["num_steps"] == 6
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert configs["commit"] == environment["commit"]


def test_trackio_keeps_one_run_with_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    needs("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    name = killed_and_resumed(tmp_path / "run", "trackio")
    assert name.startswith("run-")
    assert SQLiteStorage.get_runs("cells") == [name]
    rows = SQLiteStorage.get_logs("cells", name)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [*LOSSES.items()]
    assert [row["step"] for row in rows if "validation/été 1" in row] == [3, 4]
    assert len([*Path(tmp_path / "trackio").rglob("*.png")]) == 2
    config = SQLiteStorage.get_run_config("cells", name)
    assert config["train"]["num_steps"] == 6
