"""A mesh of devices, data × rows, over two processes."""

import json
from contextlib import ExitStack

import numpy as np
import pytest

from tests.experiments.runs import TINY, final_arrays, finish, logged, run
from tests.experiments.runs import started_together as together

MESH = ["--parallel.data", "2", "--parallel.rows", "2", "--parallel.shard-parameters", "True"]


@pytest.mark.slow
def test_two_processes_train_on_a_mesh_as_one_device_does(tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    run(TINY, alone)
    with ExitStack() as stack:
        for process in together(stack, two, *MESH, "--train.num-steps", "6"):
            finish(process, two)
    losses = [[line["loss"] for line in logged(each) if "loss" in line] for each in (alone, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=2e-5)
    for ours, theirs in zip(final_arrays(two)[0], final_arrays(alone)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


ONE_EXAMPLE = """
import dataclasses
from functools import partial

from segjax.commands.launch import run
from tests.training import tiny

Config = tiny.Config

def build(config):
    one = {"test": partial(tiny.Squares, 1, 200)}
    return dataclasses.replace(tiny.build(config), evaluation=one)

if __name__ == "__main__":
    run(Config, build, __file__)
"""


@pytest.mark.slow
def test_a_process_without_examples_to_score_takes_part_in_all_that_needs_it(tmp_path):
    file, workdir = tmp_path / "experiment.py", tmp_path / "run"
    file.write_text(ONE_EXAMPLE)
    with ExitStack() as stack:
        for process in together(stack, workdir, *MESH, "--train.num-steps", "2", file=file):
            finish(process, workdir)
    scored = json.loads((workdir / "evaluation" / "test.json").read_text())["examples"]
    assert [each["id"] for each in scored] == ["square_200"]
