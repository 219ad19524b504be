"""Whole runs in one process: their files, and when they resume, stop or are refused."""

import contextlib
import dataclasses
import itertools
import json
import shutil

import chex
import jax
import numpy as np
import optax
import pytest

from segjax.data.loading.loader import training_batches
from segjax.training import loop
from segjax.training.checkpoint import Checkpoints
from segjax.training.evaluate import Evaluator
from segjax.training.logging import WALL_CLOCK_FIELDS, read_metrics
from segjax.training.loop import NonFiniteLoss, train
from segjax.training.parallel import DataParallel
from segjax.training.run_directory import ChangedConfiguration
from segjax.training.state import TrainState, create_state
from tests.training import tiny


def run(workdir, *, devices=2, num_steps=6, schedule_steps=None, **changes):
    """Trains the tiny experiment; `changes` go into the configuration."""
    train_changes = {k: v for k, v in changes.items() if hasattr(tiny.Config.train, k)}
    rest = {k: v for k, v in changes.items() if k not in train_changes}
    config = tiny.Config(workdir=workdir, **rest)
    settings = dataclasses.replace(config.train, num_steps=num_steps, **train_changes)
    config = dataclasses.replace(config, train=settings)
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    return train(tiny.build(config), config, experiment_file=tiny.__file__, parallel=parallel)


def lines(workdir):
    """Returns the log without its times."""
    return [
        {k: v for k, v in line.items() if k not in WALL_CLOCK_FIELDS}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


def final_state(workdir):
    """Returns all arrays of the newest checkpoint, as NumPy arrays."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        tree = checkpoints.read(checkpoints.latest_step)
    return jax.tree.map(np.asarray, tree)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    results = run(workdir, norm="batch", dropout_rate=0.5)
    return workdir, results


@pytest.mark.quick
def test_a_run_leaves_all_that_the_design_promises(whole_run):
    workdir, results = whole_run
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "checkpoints"}
    assert names >= {"evaluation", "predictions", "tensorboard"}
    assert set(results) == {"validation", "test"}
    assert [row["id"] for row in results["test"].examples] == [
        f"square_{i}" for i in range(200, 203)
    ]
    for result in results.values():
        for row in result.examples:
            assert "picture" not in row or (workdir / row["picture"]).is_file()
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["train"]["num_steps"] == 6
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    splits = [(line["step"], line["split"]) for line in lines(workdir)]
    assert splits == [
        *[(step, "train") for step in (1, 2, 3)],
        (3, "validation"),
        *[(step, "train") for step in (4, 5, 6)],
        (6, "validation"),
        (6, "test"),
    ]


@pytest.mark.quick
def test_a_run_cut_short_and_resumed_equals_the_whole_run(whole_run, tmp_path):
    workdir, _ = whole_run
    # Return the run to its checkpoint of step 4, as if it had been killed after it.
    shutil.copytree(workdir, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "spl')
    run(tmp_path / "cut", norm="batch", dropout_rate=0.5)
    assert lines(tmp_path / "cut") == lines(workdir)
    chex.assert_trees_all_equal(final_state(tmp_path / "cut"), final_state(workdir))


def test_only_the_first_start_computes_initial_variables(tmp_path, monkeypatch):
    """A resumed run needs their shapes alone: tracing gives them without compiling a draw."""
    computed, traced = [], []
    original = tiny.SemanticTask.init

    def init(task, key, batch):
        traced.append(key)
        jax.debug.callback(lambda: computed.append("init"))
        return original(task, key, batch)

    monkeypatch.setattr(tiny.SemanticTask, "init", init)
    run(tmp_path, devices=1, num_steps=2)
    run(tmp_path, devices=1, num_steps=4, accept_changes=True)
    jax.effects_barrier()
    assert len(traced) == 2
    assert len(computed) == 1


def test_a_finished_run_is_left_as_it_is(whole_run, capsys):
    workdir, results = whole_run
    before = (workdir / "metrics.jsonl").read_bytes()
    again = run(workdir, norm="batch", dropout_rate=0.5)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert again["test"].scalars == results["test"].scalars
    assert "resuming" in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_versions_says_which(whole_run, tmp_path, capsys):
    shutil.copytree(whole_run[0], tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["jax"] = "0.1.2"
    path.write_text(json.dumps(environment))
    for said in (True, False):
        run(tmp_path / "run", norm="batch", dropout_rate=0.5)
        line = f"versions changed since the last part of this run: jax 0.1.2 -> {jax.__version__};"
        assert (line in capsys.readouterr().out) == said
    versions = [part["versions"]["jax"] for part in json.loads(path.read_text())["earlier"]]
    assert "0.1.2" in versions


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_run_has_the_scores_of_its_last_checkpoint_on_any_number_of_devices(whole_run, devices):
    workdir, results = whole_run
    experiment = tiny.build(tiny.Config(workdir=workdir, norm="batch", dropout_rate=0.5))
    variables = TrainState(**final_state(workdir)).variables
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    evaluator = Evaluator(experiment.task, parallel, batch_size=4, workdir=None)
    for split, result in results.items():
        source = experiment.evaluation[split]()
        found = evaluator.evaluate(parallel.replicate(variables), source, split=split, step=6)
        scores = [(row["id"], row["score"]) for row in result.examples]
        assert [(row["id"], row["score"]) for row in found.examples] == scores
        assert found.metrics.keys() == result.metrics.keys()
        for name, value in result.metrics.items():
            # The other scores are means of floats, whose rounding depends on the batch.
            exact = name in ("confusion_matrix", "absent_classes")
            tolerance = 0 if exact else 1e-6
            np.testing.assert_allclose(found.metrics[name], value, rtol=tolerance, err_msg=name)
        matrix = np.array(found.metrics["confusion_matrix"])
        assert matrix.sum() == (tiny.SIDE**2 - tiny.SIDE) * len(source)


def test_a_changed_configuration_is_refused_with_the_difference(whole_run):
    workdir, _ = whole_run
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(ChangedConfiguration, match=r"seed: 0 -> 1"):
        run(workdir, norm="batch", dropout_rate=0.5, seed=1)
    assert (workdir / "config.json").read_bytes() == before


def test_a_changed_configuration_goes_on_if_the_user_says_so(whole_run, tmp_path):
    workdir, _ = whole_run
    shutil.copytree(workdir, tmp_path / "longer")
    run(tmp_path / "longer", norm="batch", dropout_rate=0.5, num_steps=8, accept_changes=True)
    assert lines(tmp_path / "longer")[-1]["step"] == 8


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    run(tmp_path, num_steps=8, eval_every=2, checkpoint_every=1)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    scores = {
        line["step"]: line["mean_iou"] for line in lines(tmp_path) if line["split"] == "validation"
    }
    best = max(scores, key=lambda step: (scores[step], step))
    assert steps == sorted({best, 7, 8})
    with Checkpoints(tmp_path / "checkpoints", best_metric="mean_iou") as checkpoints:
        assert scores[checkpoints.best_step] == scores[best]


def test_a_loss_that_is_not_finite_stops_with_step_and_ids_and_keeps_the_last_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"step \d is nan.*square_7") as failure:
        run(tmp_path, poisoned=7)
    failed = int(str(failure.value).split("step ")[1].split()[0])
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        latest = checkpoints.latest_step
    assert (latest or 0) < failed
    if latest is not None:
        chex.assert_tree_all_finite(final_state(tmp_path))
    assert lines(tmp_path)[-1]["step"] == failed
    assert not np.isfinite(lines(tmp_path)[-1]["loss"])


def test_splits_named_in_the_configuration_are_scored_along_the_way(tmp_path):
    run(tmp_path, eval_splits=("test", "validation"))
    order = [(line["step"], line["split"]) for line in lines(tmp_path) if line["split"] != "train"]
    assert order == [(s, split) for s in (3, 6) for split in ("test", "validation")]
    with pytest.raises(ValueError, match="no split 'tset'; there are validation, test"):
        run(tmp_path / "other", eval_splits=("tset",))
    assert not (tmp_path / "other").exists()


def test_missing_data_is_said_before_a_run_directory_is_made(tmp_path):
    def missing():
        raise FileNotFoundError("no data")

    config = tiny.Config(workdir=tmp_path / "run")
    experiment = dataclasses.replace(tiny.build(config), evaluation={"validation": missing})
    with pytest.raises(FileNotFoundError, match="no data"):
        train(experiment, config, experiment_file=tiny.__file__)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fed(monkeypatch):
    """The batches that the loop reads, in order."""
    batches = []

    def recorded(*arguments, **options):
        with contextlib.closing(training_batches(*arguments, **options)) as stream:
            for batch in stream:
                batches.append(batch)
                yield batch

    monkeypatch.setattr(loop, "training_batches", recorded)
    return batches


def examples_of(batches):
    """Joins batches into one."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


@pytest.mark.parametrize("batch_size", [4, 8])
def test_a_resumed_run_goes_on_with_the_very_examples_that_would_have_come(
    tmp_path, fed, batch_size
):
    experiment = tiny.build(tiny.Config(workdir=tmp_path))
    uninterrupted = training_batches(
        experiment.train(), experiment.transforms, batch_size=4, seed=0
    )
    with contextlib.closing(uninterrupted):
        stream = examples_of(itertools.islice(uninterrupted, 8))
    run(tmp_path, num_steps=4)
    chex.assert_trees_all_equal(examples_of(fed[:4]), jax.tree.map(lambda x: x[:16], stream))
    fed.clear()
    run(tmp_path, num_steps=6, batch_size=batch_size, accept_changes=True)
    expected = jax.tree.map(lambda x: x[16 : 16 + 2 * batch_size], stream)
    chex.assert_trees_all_equal(examples_of(fed[:2]), expected)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        data = checkpoints.data(6)
    assert (data["examples_seen"], data["seed"]) == (4 * 4 + 2 * batch_size, 0)


def test_an_update_that_is_not_finite_stops_though_the_loss_is(tmp_path):
    """A huge image has a finite loss and a gradient that overflows."""
    config = tiny.Config(workdir=tmp_path)

    class Huge:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            example = tiny.Squares(4)[index]
            return {**example, "image": example["image"] * np.float32(1e19)}

    experiment = dataclasses.replace(tiny.build(config), train=Huge, transforms=())
    with pytest.raises(NonFiniteLoss, match="square_"):
        train(experiment, config, experiment_file=tiny.__file__)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step is None


def doubled(variables):
    """Doubles all variables: an `initialize` with a visible effect."""
    return jax.tree.map(lambda x: 2 * x, variables)


def test_a_run_of_no_steps_evaluates_and_keeps_the_variables_that_it_was_given(tmp_path):
    config = tiny.Config(workdir=tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=0))
    experiment = dataclasses.replace(tiny.build(config), initialize=doubled)
    results = train(experiment, config, experiment_file=tiny.__file__)
    assert set(results) == {"validation", "test"}
    assert [line["step"] for line in lines(tmp_path)] == [0, 0]
    batch = {"image": np.zeros((1, tiny.SIDE, tiny.SIDE, 1), np.float32)}
    drawn = create_state(
        experiment.task, optax.sgd(0.1), seed=config.seed, batch=batch, ema=False
    ).params
    expected = jax.tree.map(lambda x: np.asarray(2 * x), drawn)
    chex.assert_trees_all_close(final_state(tmp_path)["params"], expected, rtol=1e-6)


def test_an_experiment_brings_its_own_optimizer_and_schedule(tmp_path):
    config = tiny.Config(workdir=tmp_path)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    experiment = dataclasses.replace(
        tiny.build(config),
        schedule=optax.linear_schedule(0.5, 0.25, 1),
        optimizer=lambda schedule: optax.chain(optax.scale_by_sign(), optax.sgd(schedule)),
    )
    start = dataclasses.replace(config, workdir=tmp_path / "start")
    start = dataclasses.replace(start, train=dataclasses.replace(config.train, num_steps=0))
    for each in (start, config):
        train(experiment, each, experiment_file=tiny.__file__)
    rates = [line["learning_rate"] for line in lines(tmp_path) if line["split"] == "train"]
    assert rates == [0.5, 0.25]
    before, after = (final_state(workdir)["params"] for workdir in (start.workdir, tmp_path))
    moved = jax.tree.map(lambda a, b: np.abs(a - b), before, after)
    largest = max(np.max(leaf) for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(largest, 0.75, rtol=1e-5)  # 0.5 + 0.25, both in one direction


def test_initial_variables_are_those_of_the_first_step_only(tmp_path):
    config = tiny.Config(workdir=tmp_path)
    calls = []

    def initialize(variables):
        calls.append(variables)
        return doubled(variables)

    experiment = dataclasses.replace(tiny.build(config), initialize=initialize)
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    train(experiment, short, experiment_file=tiny.__file__)
    changed = dataclasses.replace(config, accept_changes=True)
    train(experiment, changed, experiment_file=tiny.__file__)
    assert len(calls) == 1
    assert set(calls[0]) == {"params", "batch_stats"}
    assert isinstance(jax.tree.leaves(calls[0])[0], np.ndarray)
