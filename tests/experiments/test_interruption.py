"""A run in one process that is killed, stopped and resumed."""

import os
import random
import signal
import sys
import time

import pytest

from segjax.training.checkpoint import Checkpoints
from segjax.training.meeting import TRY_AGAIN
from tests.experiments.runs import (
    QUICKSTART,
    ROOT,
    TINY,
    assert_same_bits,
    finish,
    logged,
    run,
    start,
)
from tests.processes import kill, started


def kill_after(process, workdir, step):
    """Kills a run −9 at some moment after it logged a step, its workers with it."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in logged(workdir)):
            break
        time.sleep(0.02)
    time.sleep(random.random() * 0.2)
    assert process.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
    kill(process)


def test_a_run_killed_three_times_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    settings = ["--train.num-steps", "40", "--train.checkpoint-every", "4", "--norm", "batch"]
    settings += ["--train.eval-every", "20", "--train.num-workers", "1", "--dropout-rate", "0.5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(TINY, whole, *settings)
    for step in (1, 12, 24):
        with start(TINY, killed, *settings) as process:
            kill_after(process, killed, step)
    run(TINY, killed, *settings)
    assert killed.with_suffix(".log").read_text().count("resuming from step") >= 2
    assert [line["step"] for line in logged(whole) if line["split"] == "train"] == [*range(1, 41)]
    assert_same_bits(killed, whole)
    evaluations = [(w / "evaluation" / "test.json").read_text() for w in (killed, whole)]
    assert evaluations[0] == evaluations[1]


SIXTY = [
    *("--train.num-steps", "60", "--train.batch-size", "2", "--train.log-every", "1"),
    *("--train.checkpoint-every", "2", "--train.eval-every", "6", "--train.num-workers", "2"),
    *("--network.features", "4", "--network.depth", "2", "--network.tile", "100"),
]
KILLS = 20


def killed_at(moment, process, workdir, rng, seconds_to_first_step):
    """Waits for a moment of a run and kills it, its workers with it.

    Args:
      moment: "preparation" of data and imports, "compilation", "step", "checkpoint" or
        "evaluation", in progress when the kill comes.

    Returns:
      False if the run ended before.
    """
    begun = {line["step"] for line in logged(workdir)}

    def new_step(multiple=1):
        steps = {line["step"] for line in logged(workdir) if line["split"] == "train"} - begun
        return any(step % multiple == 0 for step in steps)

    def has_come():
        if moment == "checkpoint":
            return any((workdir / "checkpoints").glob("*tmp*"))
        return new_step(6 if moment == "evaluation" else 1)

    if moment in ("preparation", "compilation"):
        first, last = (0.05, 0.5) if moment == "preparation" else (0.5, 1.0)
        time.sleep(rng.uniform(first, last) * seconds_to_first_step)
    else:
        deadline = time.monotonic() + 300
        while not has_come() and process.poll() is None:
            assert time.monotonic() < deadline, workdir.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    kill(process)
    return alive


@pytest.mark.slow
def test_a_quickstart_killed_twenty_times_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    data, rng = ["--data-dir", str(tmp_path / "data")], random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start_time = time.monotonic()
    with start(QUICKSTART, whole, *SIXTY, "--data-dir", str(tmp_path / "other")) as process:
        while not logged(whole):
            assert process.poll() is None, whole.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.02)
        seconds = time.monotonic() - start_time
        finish(process, whole)
    moments = ["preparation", "compilation", "step", "checkpoint", "evaluation"]
    done = dict.fromkeys(moments, 0)
    for number in range(KILLS):
        moment = moments[number % len(moments)]
        cache = tmp_path / f"cache_{number}" if moment == "compilation" else None
        with start(QUICKSTART, killed, *SIXTY, *data, cache=cache) as process:
            done[moment] += killed_at(moment, process, killed, rng, seconds)
    assert sum(done.values()) == KILLS, done
    run(QUICKSTART, killed, *SIXTY, *data)
    output = killed.with_suffix(".log").read_text()
    assert "Traceback" not in output
    assert "is damaged" not in output
    assert_same_bits(killed, whole)
    for split in ("validation", "test"):
        name = f"{split}.json"
        results = [(w / "evaluation" / name).read_bytes() for w in (killed, whole)]
        assert results[0] == results[1]


def test_a_second_command_is_refused_in_one_line_and_the_first_goes_on(tmp_path):
    workdir, log = tmp_path / "run", tmp_path / "second.log"
    steps = ["--train.num-steps", "100000", "--train.checkpoint-every", "100000"]
    with start(TINY, workdir, *steps, "--train.eval-every", "None") as first:
        while not any(line["step"] >= 3 for line in logged(workdir)):
            assert first.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.05)
        command = [sys.executable, str(TINY), "--workdir", str(workdir), *steps]
        command += ["--train.eval-every", "None"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with started(command, output=log, environment=environment) as second:
            assert second.wait(timeout=120) == 1
        step = logged(workdir)[-1]["step"]
        while logged(workdir)[-1]["step"] <= step:
            assert first.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.05)
    assert f"error: {workdir} is in use by process {first.pid} on " in log.read_text()
    assert "Traceback" not in log.read_text()


def test_sigterm_saves_a_checkpoint_and_says_how_to_go_on(tmp_path):
    workdir = tmp_path / "run"
    steps = ["--train.num-steps", "100000", "--train.checkpoint-every", "100000"]
    with start(TINY, workdir, *steps, "--train.eval-every", "None") as process:
        while not any(line["step"] >= 3 for line in logged(workdir)):
            assert process.poll() is None, workdir.with_suffix(".log").read_text()[-4000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == TRY_AGAIN
    output = workdir.with_suffix(".log").read_text()
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.latest_step
    assert latest >= 3
    assert f"the same command resumes from step {latest}" in output
    assert "Traceback" not in output
