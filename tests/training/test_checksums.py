"""Damaged checkpoints are found, named and set aside, and intact ones are not."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.training import checksums, set_aside
from segjax.training.checkpoint import Checkpoints
from segjax.training.checksums import DamagedCheckpoint, array_checksums, damage
from segjax.training.set_aside import set_damaged_aside
from segjax.training.state import TrainState


def state(step):
    """A state with all kinds of things that an optimiser's state is made of."""
    params = {"layer": {"kernel": jnp.arange(64.0).reshape(8, 8) * step, "bias": jnp.ones(8)}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adam(0.1), {"layer": True})
    )
    return TrainState(
        step=jnp.int32(step),
        params=params,
        batch_stats={"mean": jnp.full(3, step, jnp.bfloat16)},
        opt_state=optimizer.init(params),
        ema_params=None,
    )


def shapes():
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(0))


def save(folder, *steps):
    with Checkpoints(folder, keep=9, best_metric="seg") as checkpoints:
        for step in steps:
            checkpoints.save(state(step), data={"examples_seen": 12345, "seed": 0})
            checkpoints.add_metrics(step, {"seg": 0.125 * step})
        checkpoints.wait()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 1, 2, 3)
    return folder


@pytest.fixture
def checkpoints_folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def flip(path, place, bit=0x10):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def truncate_arrays(folder):
    """Cuts all files in half that hold bytes of arrays."""
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.quick
def test_an_intact_checkpoint_is_not_damaged(saved):
    assert [damage(saved / str(step)) for step in (1, 2, 3)] == [None] * 3


@pytest.mark.quick
def test_checksums_name_every_array_and_tell_values_shapes_and_types_apart():
    tree = {"a": (np.zeros(3, np.float32), [np.int32(1)]), "b": {}}
    assert list(array_checksums(tree)) == ["a/0", "a/1/0"]
    others = [np.zeros(4, np.float32), np.zeros(3, np.int32), np.float32([0, 0, 1e-45])]
    found = {array_checksums([x])["0"] for x in (np.zeros(3, np.float32), *others)}
    assert len(found) == 4


def test_every_flipped_bit_is_found_or_changes_nothing(saved, tmp_path):
    """Of each file, bytes all over it. A byte that no array depends on may change unseen."""
    expected = jax.tree.leaves(state(3))
    names = files_of(saved / "3")
    found = {name: 0 for name in names}
    rng = np.random.default_rng(0)
    for name in names:
        size = (saved / "3" / name).stat().st_size
        for place in sorted({0, size - 1, *rng.integers(0, max(size, 1), 6).tolist()} - {-1}):
            folder = shutil.copytree(saved / "3", tmp_path / "3")
            flip(folder / name, place)
            problem = damage(folder)
            if problem is None:
                with Checkpoints(tmp_path, best_metric="seg", read_only=True) as checkpoints:
                    arrays = jax.tree.leaves(checkpoints.read(3))
                    assert checkpoints.data(3) == {"examples_seen": 12345, "seed": 0}
                    assert checkpoints.score(3) == 0.375
                assert len(arrays) == len(expected)
                same = {tuple(np.asarray(x).ravel().tolist()) for x in arrays}
                assert same == {tuple(np.asarray(x).ravel().tolist()) for x in expected}, name
            found[name] += problem is not None
            shutil.rmtree(folder)
    for name, count in found.items():
        if name.startswith(("state/", "data/", "metrics/metrics", "checksums/arrays")):
            assert count >= 6, found


@pytest.mark.parametrize("how", ["removed", "truncated", "emptied"])
def test_every_missing_or_truncated_file_is_found_or_changes_nothing(saved, tmp_path, how):
    for name in files_of(saved / "3"):
        shutil.copytree(saved, tmp_path / "c")
        path = tmp_path / "c" / "3" / name
        content = path.read_bytes()
        path.unlink() if how == "removed" else path.write_bytes(
            content[: len(content) // 2] if how == "truncated" else b""
        )
        problem = damage(tmp_path / "c" / "3")
        if problem is not None:
            with (
                pytest.raises(DamagedCheckpoint, match=r"c.3 is damaged: "),
                Checkpoints(tmp_path / "c", best_metric="seg", read_only=True) as checkpoints,
            ):
                checkpoints.read(3)
        else:
            with Checkpoints(tmp_path / "c", best_metric="seg", read_only=True) as checkpoints:
                found = checkpoints.read(3)
            chex.assert_trees_all_equal(found["params"], state(3).params)
        shutil.rmtree(tmp_path / "c")


def test_an_array_that_is_read_otherwise_than_it_was_saved_is_named(checkpoints_folder):
    """As if Orbax had read other values from files that are as they were."""
    path = checkpoints_folder / "3" / checksums.ARRAYS
    values = json.loads(path.read_text())
    values["params/layer/kernel"] = "float32[8,8] 00000000"
    path.write_text(json.dumps(values))
    (checkpoints_folder / "3" / checksums.FILES).write_text("{}")
    with Checkpoints(checkpoints_folder, best_metric="seg", read_only=True) as checkpoints:
        message = "its array params/layer/kernel differs from what was saved"
        with pytest.raises(DamagedCheckpoint, match=message):
            checkpoints.read(3)
        with pytest.raises(DamagedCheckpoint, match=message):
            checkpoints.restore(3, shapes())
        assert checkpoints.read(2)["step"] == 2


def test_checkpoints_of_before_there_were_checksums_are_read(checkpoints_folder):
    folder = checkpoints_folder / "3"
    shutil.rmtree(folder / checksums.ITEM)
    path = folder / "_CHECKPOINT_METADATA"
    values = json.loads(path.read_text())
    del values["item_handlers"][checksums.ITEM]
    path.write_text(json.dumps(values))
    (folder / checksums.METRICS_CHECKSUM).unlink()
    assert damage(folder) is None
    with Checkpoints(checkpoints_folder, best_metric="seg", read_only=True) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.read(3)["params"], state(3).params)


@pytest.mark.quick
def test_damaged_checkpoints_are_set_aside_and_the_newest_intact_one_is_found(checkpoints_folder):
    for step in (2, 3):
        truncate_arrays(checkpoints_folder / str(step))
    said = set_damaged_aside(checkpoints_folder)
    aside = checkpoints_folder.parent / set_aside.FOLDER
    assert [line.split(" is damaged: ")[0] for line in said] == [
        "the checkpoint of step 3",
        "the checkpoint of step 2",
    ]
    for step, line in zip((3, 2), said, strict=True):
        assert f"moved to {aside / str(step)}, going on from step 1" in line
    assert sorted(path.name for path in aside.iterdir()) == ["2", "3"]
    with Checkpoints(checkpoints_folder, best_metric="seg") as checkpoints:
        assert checkpoints.steps == [1]
    save(checkpoints_folder, 3)
    truncate_arrays(checkpoints_folder / "3")
    set_damaged_aside(checkpoints_folder)
    assert sorted(path.name for path in aside.iterdir()) == ["2", "3", "3_2"]


@pytest.mark.quick
def test_without_damage_nothing_is_moved(checkpoints_folder):
    before = files_of(checkpoints_folder.parent)
    assert set_damaged_aside(checkpoints_folder) == []
    assert files_of(checkpoints_folder.parent) == before
    assert set_damaged_aside(checkpoints_folder.parent / "missing") == []


def test_old_scores_that_cannot_be_read_are_set_aside_as_well(checkpoints_folder):
    (checkpoints_folder / "1" / checksums.METRICS).write_text('{"seg": 0.1')
    (line,) = set_damaged_aside(checkpoints_folder)
    assert "step 1 is damaged: its metrics/metrics is no JSON any more" in line
    assert "going on from step 3" in line


def test_if_none_is_intact_all_stay_and_the_error_says_so(checkpoints_folder):
    for step in (1, 2, 3):
        truncate_arrays(checkpoints_folder / str(step))
    before = files_of(checkpoints_folder.parent)
    message = r"none of the checkpoints in .* is intact \(steps 1, 2, 3\); that of step 3: its stat"
    with pytest.raises(DamagedCheckpoint, match=message):
        set_damaged_aside(checkpoints_folder)
    assert files_of(checkpoints_folder.parent) == before


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(checkpoints_folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checksums, "_file_checksum", refuse)
    with pytest.raises(PermissionError):
        set_damaged_aside(checkpoints_folder)
    assert len(list(checkpoints_folder.iterdir())) == 3
