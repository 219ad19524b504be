"""A mesh of devices, data × rows, over two processes."""

from contextlib import ExitStack

import numpy as np
import pytest

from tests.experiments.test_interruption import TINY, final_arrays, finish, logged, run
from tests.experiments.test_interruption import started_together as together

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
