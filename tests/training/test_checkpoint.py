"""Which checkpoints are kept, found again and rejected."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.training.checkpoint import Checkpoints
from segjax.training.checksums import damage
from segjax.training.state import TrainState
from tests.readme import readme_code

pytestmark = pytest.mark.quick
NAN = float("nan")


def state(step):
    def params():
        return {"layer": {"kernel": jnp.full((2, 3), step, jnp.float32)}}

    return TrainState(
        step=jnp.int32(step), params=params(), batch_stats={}, opt_state=(params(), jnp.int32(step))
    )


def save_all(folder, scores, *, first=1, **options):
    """Saves a step for each score, as one process of a run would; None stands for no evaluation."""
    with Checkpoints(folder, best_metric="seg", **options) as checkpoints:
        for step, score in enumerate(scores, start=first):
            checkpoints.save(state(step), data={"next_batch": step})
            if score is not None:
                checkpoints.add_metrics(step, {"seg": score, "loss": 1.0})
        checkpoints.wait()
        return checkpoints.steps, checkpoints.best_step


@pytest.mark.parametrize(
    ("scores", "minimize", "kept", "best"),
    [
        ([0.1, 0.5, 0.3, 0.2], False, [2, 4], 2),
        ([0.5, 0.1, 0.3, 0.2], True, [2, 4], 2),
        ([0.3, 0.5, 0.5, 0.2], False, [3, 4], 3),
        ([NAN, 0.5, 0.3, NAN], False, [2, 4], 2),
        ([0.5, NAN, 0.3, 0.2], False, [1, 4], 1),
        ([0.2, NAN, 0.3, 0.4], True, [1, 4], 1),
        ([0.5, None, None, None], False, [1, 4], 1),
        ([None, None, NAN, None], False, [4], 4),
    ],
)
def test_the_newest_and_the_best_are_kept_and_found(tmp_path, scores, minimize, kept, best):
    assert save_all(tmp_path, scores, keep=1, minimize=minimize) == (kept, best)


def test_a_resumed_run_knows_and_keeps_the_best_of_before(tmp_path):
    save_all(tmp_path, [0.1, 0.5, 0.3], keep=1)
    with Checkpoints(tmp_path, best_metric="seg", read_only=True) as checkpoints:
        assert checkpoints.best_step == 2
        assert checkpoints.score(2) == 0.5
    assert save_all(tmp_path, [0.2, 0.4, None], keep=1, first=4) == ([2, 6], 2)
    assert save_all(tmp_path, [0.6, 0.4], keep=1, first=7) == ([7, 8], 7)


def shapes():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0)
    )


def test_a_state_comes_back_as_it_was_with_its_place_in_the_data(tmp_path):
    save_all(tmp_path, [0.1, 0.5, 0.3])
    with Checkpoints(tmp_path, best_metric="seg") as checkpoints:
        chex.assert_trees_all_equal(checkpoints.restore(3, shapes()), state(3))
    with Checkpoints(tmp_path) as checkpoints:  # without knowing the experiment
        for step in (2, 3):
            found = checkpoints.read(step)
            chex.assert_trees_all_equal(found["params"], state(step).params)
            assert found["step"] == step
            assert checkpoints.data(step) == {"next_batch": step}
        assert checkpoints.best_step == 3


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path, best_metric="seg") as checkpoints:
        checkpoints.save(state(1), data={"next_batch": 1})
        checkpoints.save(state(1), data={"next_batch": 9})
        checkpoints.wait()
        assert checkpoints.data(1) == {"next_batch": 1}


def test_without_checkpoints_there_is_neither_a_latest_nor_a_best(tmp_path):
    with Checkpoints(tmp_path, best_metric="seg") as checkpoints:
        assert (checkpoints.latest_step, checkpoints.best_step) == (None, None)


def test_metrics_without_the_best_metric_are_refused(tmp_path):
    with Checkpoints(tmp_path, best_metric="sge") as checkpoints:
        checkpoints.save(state(1), data={})
        with pytest.raises(ValueError, match=r"the best metric 'sge' is not among \['seg'\]"):
            checkpoints.add_metrics(1, {"seg": 0.5})
        assert not checkpoints.evaluated(1)


def test_saved_arrays_are_those_of_the_moment_of_saving(tmp_path):
    """The save continues in the background while the next steps overwrite the state."""

    def double(state):
        return state.replace(
            step=state.step + 1, params=jax.tree.map(lambda x: 2.0 * x, state.params)
        )

    step, current = jax.jit(double, donate_argnums=0), state(1)
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(2):
            checkpoints.save(current, data={})
            current = step(current)
        checkpoints.wait()
        for number, value in ((1, 1.0), (2, 2.0)):
            kernel = checkpoints.read(number)["params"]["layer"]["kernel"]
            np.testing.assert_array_equal(kernel, value)
            assert damage(tmp_path / str(number)) is None


@pytest.mark.parametrize("scores", [(0.1, 0.5, 0.3, None), (0.5, 0.5, 0.3, 0.2), (0.1, None, 0.2)])
def test_plain_orbax_finds_and_reads_the_best_as_the_readme_says(tmp_path, monkeypatch, scores):
    folder = tmp_path / "runs" / "v3" / "checkpoints"
    with Checkpoints(folder, keep=1, best_metric="mean_iou") as checkpoints:
        for step, score in enumerate(scores, start=1):
            checkpoints.save(state(step), data={})
            if score is not None:
                checkpoints.add_metrics(step, {"mean_iou": score})
        checkpoints.wait()
        best = checkpoints.best_step
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(readme_code("Checkpoints"), names)
    assert names["run"].best_step() == best
    chex.assert_trees_all_equal(names["state"]["params"], state(best).params)
    assert sorted(folder.rglob("*")) == before
