"""The command that reproduces results: it records, goes on where it stopped, and survives failures.

Its trainings are tiny rows of a ledger of their own, so that an hour of a lent GPU is not spent on
finding mistakes.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "reproduce.py"
TINY = "--network.features 2 --network.depth 2 --network.tile 68 --train.batch-size 2"
LEDGER = """
[[model]]
id = "unet"
name = "U-Net"
paper = "paper"
experiments = "experiments"

[[table]]
id = "cells"
title = "cells"
"""
JOB = '[[job]]\nrow = "{row}"\ndataset = "synthetic_cells"\nseeds = {seeds}\n'
ROW = """
[[row]]
id = "{row}"
model = "unet"
table = "cells"
name = "{row}"
command = "python experiments/quickstart.py --workdir runs/a {flags} --train.num-steps {steps}"
split = "test"
metrics = ["foreground_iou"]
"""
COMMIT = "0123456789" * 4


def load(path):
    """Imports a script."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up their module by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reproduce(tmp_path):
    """Returns a function that writes a ledger of jobs and runs the script on it."""
    # The checkout under test may have changes, and runs with changes are not recorded.
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(f'#!/bin/sh\ncase "$*" in *rev-parse*) echo {COMMIT};; esac\n')
    git.chmod(0o755)
    ledger, document = tmp_path / "ledger", tmp_path / "RESULTS.md"
    ledger.mkdir()
    document.write_text("<!-- results: cells -->\n<!-- end of results -->\n")

    def run(*jobs):
        text = "".join(JOB.format(row=name, seeds=seeds) for name, seeds, _, _ in jobs)
        (ledger / "ledger.toml").write_text(LEDGER + text)
        rows = [ROW.format(row=n, steps=s, flags=f"{TINY} {more}") for n, _, s, more in jobs]
        (ledger / "rows.toml").write_text("\n".join(rows))
        done = subprocess.run(
            [
                *(sys.executable, SCRIPT, "--hours", "1", "--data", tmp_path),
                *("--runs", tmp_path / "runs", "--ledger", ledger, "--documents", document),
                "--no-benchmarks",
            ],
            env={
                **os.environ,
                "PATH": f"{git.parent}{os.pathsep}{os.environ['PATH']}",
                "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        return done.returncode, done.stdout + done.stderr, ledger, document.read_text()

    return run


def test_jobs_are_trained_recorded_and_left_out_the_next_time_and_failures_do_not_stop_others(
    reproduce,
):
    jobs = (("broken", 1, 2, "--train.best-metric nonsense"), ("small", 2, 2, ""))
    status, printed, ledger, document = reproduce(*jobs)
    assert status == 1, printed
    assert "broken  failed: exit status" in printed
    record = json.loads((ledger / "small.json").read_text())
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    assert record["runs"][0]["commits"] == [COMMIT]
    assert "2 × 2 steps" in document
    again, printed, _, _ = reproduce(jobs[1])
    assert again == 0, printed
    assert "small  recorded before" in printed
    assert "$" not in printed  # no command ran


SAVES = """
import pathlib, signal, sys, time
saved = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (saved.write_text("all"), sys.exit(75)))
saved.write_text("started")
time.sleep(600)
"""


def test_when_the_time_is_up_a_training_is_asked_to_save_and_none_starts(tmp_path):
    reproduce = load(SCRIPT)
    saved = tmp_path / "saved"
    clock = reproduce.Clock(time.monotonic() + 5)
    with pytest.raises(reproduce.TimeUp):
        clock.run([sys.executable, "-c", SAVES, str(saved)])
    assert saved.read_text() == "all"
    saved.unlink()
    with pytest.raises(reproduce.TimeUp):
        clock.run([sys.executable, "-c", SAVES, str(saved)])
    assert not saved.exists()


def test_weights_are_those_in_the_folder_of_data_and_other_flags_stay():
    flags = ["--initial.weights", "a.npz", "--variant", "small"]
    given = load(SCRIPT).with_weights(flags, Path("/data"))
    assert given == ["--initial.weights", "/data/weights/a.npz", "--variant", "small"]
    assert flags[1] == "a.npz"
