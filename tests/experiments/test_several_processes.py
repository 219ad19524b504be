"""Runs that are spread over several processes, and what ends them."""

import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

from segjax.training.checkpoint import Checkpoints
from segjax.training.meeting import TRY_AGAIN
from tests.experiments.runs import (
    TINY,
    assert_same_bits,
    final_arrays,
    finish,
    logged,
    run,
    started_together,
)
from tests.processes import kill, started
from tests.readme import readme_code


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """A run of one process with four devices, and of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("processes")
    one, two = folder / "one", folder / "two"
    run(TINY, one, "--norm", "batch", devices=4)
    run_two(two, "--norm", "batch")
    return one, two


def run_two(workdir, *arguments):
    with ExitStack() as stack:
        for process in started_together(stack, workdir, *arguments):
            finish(process, workdir)


def test_what_the_main_process_refuses_ends_all_in_one_line(two_processes, tmp_path):
    workdir = tmp_path / "two"
    shutil.copytree(two_processes[1], workdir)
    with ExitStack() as stack:
        for process in started_together(stack, workdir, "--norm", "batch", "--seed", "1"):
            assert process.wait(timeout=300) == 1
    output = workdir.with_suffix(".log").read_text()
    assert output.count(f"error: {workdir} holds a run with another configuration") == 2
    assert "Traceback" not in output


ENDLESS = ["--train.num-steps", "100000", "--train.checkpoint-every", "100000"]
ENDLESS += ["--train.eval-every", "None"]


def test_processes_with_other_settings_end_in_one_line(tmp_path):
    workdir = tmp_path / "run"
    with ExitStack() as stack:
        each = (["--seed", "0"], ["--seed", "7"])
        for process in started_together(stack, workdir, each=each):
            assert process.wait(timeout=120) == 1
    output = workdir.with_suffix(".log").read_text()
    assert output.count("differs from process 0") == 2
    assert output.count("seed: 7 there, 0 in process 0") == 2
    assert "Traceback" not in output


def test_run_directories_that_are_not_shared_are_named(tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other"
    with ExitStack() as stack:
        for process in started_together(stack, workdir, each=([], ["--workdir", str(other)])):
            assert process.wait(timeout=120) == 1
    output = workdir.with_suffix(".log").read_text()
    assert output.count("does not see process 0's files in") == 2
    assert "Traceback" not in output


def wait_for_step(workdir, processes, step):
    while not any(line["step"] >= step for line in logged(workdir)):
        for process in processes:
            assert process.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
        time.sleep(0.05)


def test_sigterm_to_one_of_two_processes_ends_both_after_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    with ExitStack() as stack:
        processes = started_together(stack, workdir, *ENDLESS)
        wait_for_step(workdir, processes, 3)
        processes[1].send_signal(signal.SIGTERM)
        for process in processes:
            assert process.wait(timeout=120) == TRY_AGAIN, workdir.with_suffix(".log").read_text()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.latest_step
    assert latest >= 3
    output = workdir.with_suffix(".log").read_text()
    message = f"stopped by signal SIGTERM; the same command resumes from step {latest}"
    assert output.count(message) == 2
    assert "Traceback" not in output


@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_a_killed_process_ends_the_other_in_one_line(victim, tmp_path):
    workdir = tmp_path / "run"
    with ExitStack() as stack:
        processes = started_together(stack, workdir, *ENDLESS)
        wait_for_step(workdir, processes, 3)
        kill(processes[victim])
        left = processes[1 - victim]
        assert left.wait(timeout=30) == TRY_AGAIN, workdir.with_suffix(".log").read_text()
    output = workdir.with_suffix(".log").read_text()
    assert output.splitlines()[-1].startswith(f"error: process {victim} ")
    assert "ended without a word" in output.splitlines()[-1]
    assert "Traceback" not in output


DIES_AFTER_THE_RUN = """
import os, signal
import jax
from segjax.commands.launch import run
from tests.training import tiny

run(tiny.Config, tiny.build, tiny.__file__)
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_dies_after_the_run_leaves_the_others_their_success(tmp_path):
    file, workdir = tmp_path / "experiment.py", tmp_path / "run"
    file.write_text(DIES_AFTER_THE_RUN)
    with ExitStack() as stack:
        first, second = started_together(stack, workdir, file=file)
        finish(first, workdir)
        assert second.wait(timeout=60) == -signal.SIGKILL
    assert logged(workdir)[-1]["step"] == 6


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_ten_times_equal_an_uninterrupted_run(tmp_path):
    """The kills come at random steps, −9 and SIGTERM in turn; each ends all four processes."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = ["--train.num-steps", "3000", "--train.checkpoint-every", "50"]
    steps += ["--train.eval-every", "1500", "--train.log-every", "10"]
    settings = {"each": [[]] * 4, "devices": 1}
    with ExitStack() as stack:
        for process in started_together(stack, whole, *steps, **settings):
            finish(process, whole)
    rng = random.Random(0)
    for number in range(10):
        with ExitStack() as stack:
            processes = started_together(stack, killed, *steps, **settings)
            wait_for_step(killed, processes, 250 * number + rng.randrange(100, 250))
            time.sleep(0.1 * rng.random())
            victim, by = rng.randrange(4), (signal.SIGKILL, signal.SIGTERM)[number % 2]
            processes[victim].send_signal(by)
            ends = [process.wait(timeout=120) for process in processes]
        if by == signal.SIGKILL:
            assert ends.pop(victim) == -signal.SIGKILL
        assert set(ends) == {TRY_AGAIN}, killed.with_suffix(".log").read_text()[-4000:]
    with ExitStack() as stack:
        for process in started_together(stack, killed, *steps, **settings):
            finish(process, killed)
    output = killed.with_suffix(".log").read_text()
    assert "Traceback" not in output
    assert "is damaged" not in output
    assert_same_bits(killed, whole)


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


def test_two_processes_stop_early_together_and_once(tmp_path):
    """Training makes this metric smaller, so that the second evaluation is not better."""
    workdir = tmp_path / "run"
    steps = ["--train.num-steps", "5", "--train.eval-every", "1", "--train.stop-after", "1"]
    settings = [*steps, "--train.best-metric", "negative_log_likelihood:max"]
    run_two(workdir, *settings)
    first = logged(workdir)
    assert [(line["step"], line["split"]) for line in first if line["split"] != "train"] == [
        (1, "validation"),
        (2, "validation"),
        (2, "test"),
    ]
    assert "not better" in first[-2]["stopped"]
    assert workdir.with_suffix(".log").read_text().count("stopped at step 2, since") == 1


@pytest.mark.parametrize("which", [0, 1], ids=["one process", "two processes"])
def test_plain_orbax_reads_a_run_of_several_devices_on_one_as_the_readme_says(
    two_processes, which, tmp_path
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "v3").symlink_to(two_processes[which])
    save = "import numpy\nnumpy.savez('found', *map(numpy.asarray, jax.tree.leaves(state)))\n"
    code = f"import os\nos.chdir({str(tmp_path)!r})\n{readme_code('Checkpoints')}{save}"
    log = tmp_path / "log"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    with started(command, output=log, environment=environment) as process:
        assert process.wait(timeout=120) == 0, log.read_text()[-4000:]
    found = [*np.load(tmp_path / "found.npz").values()]
    expected, _ = final_arrays(two_processes[which])
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_run_of_one_process_goes_on_in_two(two_processes, tmp_path):
    one, _ = two_processes
    more = ["--norm", "batch", "--train.num-steps", "8", "--accept-changes", "True"]
    for name in ("alone", "together"):
        shutil.copytree(one, tmp_path / name)
    run_two(tmp_path / "together", *more)
    alone = tmp_path / "alone"
    run(TINY, alone, *more)
    assert_same_numbers(numbers(tmp_path / "together"), numbers(alone))
