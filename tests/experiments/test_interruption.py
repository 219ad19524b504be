"""Runs as their own processes: killed and resumed, and spread over several processes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from segjax.training.checkpoint import Checkpoints
from segjax.training.logging import WALL_CLOCK_FIELDS, read_metrics

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.py"
TINY = ROOT / "tests" / "training" / "tiny.py"
SMALL = [
    *("--train.num-steps", "12", "--train.batch-size", "2", "--train.log-every", "1"),
    *("--train.checkpoint-every", "2", "--train.eval-every", "6", "--train.num-workers", "2"),
    *("--network.features", "2", "--network.depth", "2", "--network.tile", "100"),
]


def start(file, workdir, *arguments, devices=1):
    """Starts an experiment as a process, with its output in a file beside its run directory."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    with workdir.with_suffix(".log").open("a") as output:
        return subprocess.Popen(
            [sys.executable, str(file), "--workdir", str(workdir), *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process, workdir):
    """Waits for the end of a process that should succeed."""
    assert process.wait(timeout=300) == 0, workdir.with_suffix(".log").read_text()[-4000:]


def logged(workdir):
    path = workdir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK_FIELDS} for line in lines]


def final_arrays(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.read(checkpoints.latest_step)
        place = checkpoints.data(checkpoints.latest_step)
    return [np.asarray(x) for x in jax.tree.leaves(state)], place


def kill_after(process, workdir, step):
    """Kills a run −9 at some moment after it logged a step, its workers with it."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in logged(workdir)):
            break
        time.sleep(0.02)
    time.sleep(random.random() * 0.2)
    assert process.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_quickstart_killed_three_times_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    data = ["--data-dir", str(tmp_path / "data")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(QUICKSTART, whole, *SMALL, *data), whole)
    for step in (1, 5, 9):
        kill_after(start(QUICKSTART, killed, *SMALL, *data), killed, step)
    finish(start(QUICKSTART, killed, *SMALL, *data), killed)
    assert killed.with_suffix(".log").read_text().count("resuming from step") >= 2
    assert logged(killed) == logged(whole)
    assert [line["step"] for line in logged(whole) if line["split"] == "train"] == [*range(1, 13)]
    (arrays, place), (expected, expected_place) = final_arrays(killed), final_arrays(whole)
    assert place == expected_place
    assert all(np.array_equal(a, b) for a, b in zip(arrays, expected, strict=True))
    evaluations = [(w / "evaluation" / "test.json").read_text() for w in (killed, whole)]
    assert evaluations[0] == evaluations[1]


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    workdir = tmp_path / "run"
    steps = ["--train.num-steps", "100000", "--train.checkpoint-every", "100000"]
    process = start(TINY, workdir, *steps, "--train.eval-every", "None")
    while not any(line["step"] >= 3 for line in logged(workdir)):
        assert process.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    output = workdir.with_suffix(".log").read_text()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.latest_step
    assert latest >= 3
    assert f"the same command resumes from step {latest}" in output
    assert "Traceback" not in output


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A run of one process with four devices, and of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    finish(start(TINY, one, "--norm", "batch", devices=4), one)
    run_two(two, "--norm", "batch")
    return one, two


def run_two(workdir, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        start(
            TINY,
            workdir,
            *arguments,
            *("--distributed.coordinator-address", f"127.0.0.1:{port}"),
            *("--distributed.num-processes", "2", "--distributed.process-id", str(index)),
            devices=2,
        )
        for index in range(2)
    ]
    for process in processes:
        finish(process, workdir)


def numbers(workdir):
    """The log as {(step, split): {name: number}}."""
    return {
        (line["step"], line["split"]): {k: v for k, v in line.items() if isinstance(v, float)}
        for line in logged(workdir)
    }


def assert_same_numbers(found, expected):
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_allclose(found[key][name], value, atol=1e-5, err_msg=f"{key} {name}")


def test_two_processes_give_the_curve_and_the_scores_of_one(two_processes):
    one, two = two_processes
    assert_same_numbers(numbers(two), numbers(one))
    for split in ("validation", "test"):
        results = [json.loads((w / "evaluation" / f"{split}.json").read_text()) for w in (two, one)]
        assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]
        ids = [[row["id"] for row in result["examples"]] for result in results]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == len(ids[0])


def test_two_processes_write_one_log_and_one_set_of_checkpoints(two_processes):
    _, two = two_processes
    steps = [line["step"] for line in logged(two) if line["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len([*(two / "tensorboard").iterdir()]) == 1
    assert two.with_suffix(".log").read_text().count("report    ") == 1


def test_a_run_of_one_process_goes_on_in_two(two_processes, tmp_path):
    one, _ = two_processes
    more = ["--norm", "batch", "--train.num-steps", "8", "--accept-changes", "True"]
    for name in ("alone", "together"):
        subprocess.run(["cp", "-r", str(one), str(tmp_path / name)], check=True)
    run_two(tmp_path / "together", *more)
    alone = tmp_path / "alone"
    finish(start(TINY, alone, *more, devices=1), alone)
    assert_same_numbers(numbers(tmp_path / "together"), numbers(alone))
