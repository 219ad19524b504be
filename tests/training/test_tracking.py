"""Trackers as a run uses them: which calls they get, and that they cannot harm the run.

A module with W&B's functions stands in for it. `test_tracking_services.py` runs the real packages.
"""

import dataclasses
import importlib.machinery
import importlib.util
import json
import shutil
import sys
import threading
import types

import jax
import numpy as np
import pytest

from segjax.training import loop, parallel, tracking
from segjax.training.logging import MetricsLog, read_metrics
from segjax.training.run_directory import open_run
from segjax.training.tracking import Background, check_tracker, open_trackers
from tests.training import tiny


class FakeWandb(types.ModuleType):
    """W&B's functions; keeps the calls, and fails from the step `down_from` on."""

    Image = staticmethod(lambda picture: ("picture", picture.shape))
    Settings = staticmethod(dict)
    offline = False

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="a test")
        self.down_from, self.starts, self.logged, self.ended = np.inf, [], [], []

    def init(self, **arguments):
        if self.down_from == 0:
            raise ConnectionError("no route\nto host")
        self.starts.append(arguments)
        return FakeRun(self, arguments["id"] or "abc123")


class FakeRun:
    def __init__(self, module, id):
        self.module, self.id, self.axis = module, id, {}
        self.offline = module.offline

    def define_metric(self, name, step_metric=None):
        self.axis[name] = step_metric

    def log(self, values):
        assert self.axis == {"step": None, "*": "step"}
        step, values = values["step"], {k: v for k, v in values.items() if k != "step"}
        if step >= self.module.down_from:
            raise ConnectionError("no route\nto host")
        self.module.logged += [(step, name, value) for name, value in values.items()]

    def finish(self, exit_code):
        self.module.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for variable in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return module


def train(workdir, **changes):
    settings = dataclasses.replace(tiny.Config.train, num_steps=4, eval_every=2, checkpoint_every=2)
    config = tiny.Config(workdir=workdir, train=settings, **changes)
    devices = parallel.DataParallel(tuple(jax.devices()[:1]))
    loop.train(tiny.build(config), config, experiment_file=tiny.__file__, parallel=devices)
    return read_metrics(workdir / "metrics.jsonl")


def numbers(lines):
    return sorted(
        (line["step"], f"{line['split']}/{name}", value)
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "elapsed_seconds")
        if name != "images_per_second"
    )


def sent(wandb):
    """The numbers that W&B has, in the form of `numbers`."""
    return sorted(
        (step, name, value)
        for step, name, value in wandb.logged
        if not isinstance(value, tuple) and not name.endswith("images_per_second")
    )


def cut(workdir, step):
    """Makes a finished run one that was killed after its checkpoint of a step."""
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)


def test_a_run_is_tracked_whole_and_once_though_the_network_fails_and_it_is_killed(
    tmp_path, wandb, capsys
):
    alone = train(tmp_path / "alone")
    assert wandb.starts == []
    assert not (tmp_path / "alone" / "tracking.json").exists()

    wandb.down_from = 3
    workdir = tmp_path / "mine"
    tracked = train(workdir, track="wandb")
    assert numbers(tracked) == numbers(alone)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == [
        "warning: wandb: no route to host; training goes on without it, and the run directory "
        "keeps everything. A resumed run sends the metrics that are missing"
    ]
    assert {step for step, _, _ in wandb.logged} == {1, 2}
    assert wandb.ended == []

    wandb.down_from = np.inf
    cut(workdir, 2)
    assert numbers(train(workdir, track="wandb", track_project="cells")) == numbers(alone)
    assert sent(wandb) == numbers(alone)
    pictures = {(step, name) for step, name, value in wandb.logged if isinstance(value, tuple)}
    # The first two of each split; at the end, the best and the worst.
    assert {step for step, _ in pictures} == {2, 4}
    assert (2, "validation/square_100") in pictures
    assert any(name.startswith("test/square_20") for step, name in pictures if step == 4)
    assert wandb.ended == [0]

    first, second = wandb.starts
    assert (first["id"], second["id"]) == (None, "abc123")
    assert (first["project"], second["project"]) == ("segjax", "cells")
    assert (first["name"], first["dir"]) == ("mine", str(workdir.resolve()))
    assert first["config"]["train"]["num_steps"] == 4
    environment = json.loads((workdir / "environment.json").read_text())
    assert first["config"]["commit"] == environment["commit"]


def opened(workdir, **changes):
    """A run directory that a run has opened; returns its configuration."""
    config = tiny.Config(workdir=workdir, track="wandb", **changes)
    open_run(config, tiny.__file__)
    return config


def test_a_new_tracked_run_that_cannot_start_is_refused_in_one_line(tmp_path, wandb):
    wandb.down_from = 0
    with pytest.raises(ValueError, match=r"^--track wandb: cannot start .*: no route to host$"):
        open_trackers(opened(tmp_path), say=print)
    assert not (tmp_path / "tracking.json").exists()


def test_a_service_that_is_down_does_not_keep_a_tracked_run_from_resuming(tmp_path, wandb):
    said = []
    open_trackers(opened(tmp_path), say=said.append)[0].close(failed=False)
    wandb.down_from = 0
    assert open_trackers(opened(tmp_path), say=said.append) == []
    assert len(said) == 1
    assert said[0].startswith("warning: wandb: cannot continue its run abc123: no route to host; ")


def test_steps_that_a_killed_run_sent_are_not_sent_again(tmp_path, wandb):
    for resume_step, steps in ((None, (1, 2, 3)), (1, (2, 3)), (1, (2, 3, 4))):
        trackers = open_trackers(opened(tmp_path), say=print)
        with MetricsLog(tmp_path, resume_step=resume_step, trackers=trackers) as log:
            for step in steps:
                log.metrics(step, "train", {"loss": 1 / step})
    assert wandb.logged == [(step, "train/loss", 1 / step) for step in (1, 2, 3, 4)]


def test_a_missing_package_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--track wandb: .* pip install 'segjax\[wandb\]'$"):
        train(tmp_path / "run", track="wandb")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_name_of_a_package_is_not_the_package(tmp_path, monkeypatch):
    """W&B makes a folder "wandb" where it runs."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="not installed"):
        check_tracker("wandb")
    check_tracker(None)


def test_only_the_main_process_tracks(tmp_path, wandb, monkeypatch):
    config = opened(tmp_path)
    monkeypatch.setattr(parallel, "is_main_process", lambda: False)
    assert open_trackers(config, say=print) == []
    assert wandb.starts == []


def test_a_damaged_record_is_named(tmp_path, wandb):
    config = opened(tmp_path)
    for content in ("{", "[]", '{"wandb": {"id": "a"}}', '{"wandb": {"id": "a", "sent": [1]}}'):
        (tmp_path / "tracking.json").write_text(content)
        with pytest.raises(ValueError, match=r"tracking\.json is damaged: .*; remove it to start"):
            open_trackers(config, say=print)
    assert wandb.starts == []


def test_another_tracker_has_a_run_and_a_record_of_its_own(tmp_path, wandb):
    record = {"mlflow": {"id": "7", "sent": {"train/loss": 9}}}
    (tmp_path / "tracking.json").write_text(json.dumps(record))
    with MetricsLog(tmp_path, trackers=open_trackers(opened(tmp_path), say=print)) as log:
        log.metrics(1, "train", {"loss": 0.5})
    assert json.loads((tmp_path / "tracking.json").read_text()) == record | {
        "wandb": {"id": "abc123", "sent": {"train/loss": 1}}
    }
    assert wandb.logged == [(1, "train/loss", 0.5)]


def test_offline_each_part_of_a_run_in_wandb_has_all_metrics(tmp_path, wandb):
    """`wandb sync` replaces one part of a run by the next."""
    wandb.offline = True
    for resume_step, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        wandb.logged.clear()
        trackers = open_trackers(opened(tmp_path), say=print)
        with MetricsLog(tmp_path, resume_step=resume_step, trackers=trackers) as log:
            for step in steps:
                log.metrics(step, "train", {"loss": 1 / step})
    assert wandb.logged == [(step, "train/loss", 1 / step) for step in (1, 2, 3, 4)]
    assert [start["id"] for start in wandb.starts] == [None, "abc123"]


def test_a_run_that_fails_is_marked_as_failed(tmp_path, wandb):
    trackers = open_trackers(opened(tmp_path), say=print)
    with pytest.raises(KeyboardInterrupt), MetricsLog(tmp_path, trackers=trackers):
        raise KeyboardInterrupt
    assert wandb.ended == [1]


class Slow:
    """A tracker whose calls wait until `go` is set."""

    def __init__(self):
        self.go, self.calls = threading.Event(), []

    def scalars(self, step, values):
        self.go.wait()
        self.calls.append((step, dict(values)))

    def pictures(self, step, pictures):
        self.go.wait()

    def close(self, *, failed):
        self.calls.append(failed)


def in_background(tracker, said, **changes):
    return Background(tracker, {}, lambda: None, name="slow", say=said.append, **changes)


def test_training_does_not_wait_for_a_slow_tracker():
    slow, said = Slow(), []
    tracker = in_background(slow, said)
    for step in (1, 2, 3):
        tracker.scalars(step, {"train/loss": 1 / step})
    assert slow.calls == []
    slow.go.set()
    tracker.close(failed=False)
    assert slow.calls == [*((step, {"train/loss": 1 / step}) for step in (1, 2, 3)), False]
    assert said == []


def test_the_end_of_a_run_waits_a_limited_time():
    slow, said = Slow(), []
    tracker = in_background(slow, said, patience=0.01)
    tracker.scalars(1, {"train/loss": 1.0})
    tracker.close(failed=False)
    assert len(said) == 1
    assert said[0].startswith("warning: slow: did not finish within 0.01 seconds; ")
    slow.go.set()


def test_a_tracker_that_falls_far_behind_is_given_up_without_gaps(monkeypatch):
    picture = np.zeros((10, 10, 3), np.uint8)
    monkeypatch.setattr(tracking, "LARGEST_BACKLOG", 3 * picture.nbytes)
    slow, said = Slow(), []
    tracker = in_background(slow, said)
    for step in range(1, 10):
        tracker.scalars(step, {"train/loss": 1.0})
        tracker.pictures(step, {"validation/a": picture})
    assert len(said) == 1
    assert said[0].startswith("warning: slow: it is too far behind; ")
    slow.go.set()
    tracker.close(failed=False)
    # 300 bytes of pictures and 200 of a number a step; 900 may wait.
    assert slow.calls == [(1, {"train/loss": 1.0}), (2, {"train/loss": 1.0}), False]
