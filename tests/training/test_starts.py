"""What a run checks before its first step, and what failed starts and resumed runs say."""

import dataclasses
import json

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax.cli import main
from segjax.commands import launch
from segjax.data.checks.examples import BadData
from segjax.evaluation.metrics import NegativeLogLikelihood
from segjax.models.normalization import BatchNorm
from segjax.ops.batch_statistics import SingleValueStatistics
from segjax.trained import load_run, predict_all
from segjax.training.checkpoint import Checkpoints
from segjax.training.loop import train
from segjax.training.parallel import DataParallel
from segjax.training.rehearsal import FaultyEvaluation
from segjax.training.run_directory import ChangedConfiguration, read_config
from segjax.training.run_lock import RunLock, RunLocked
from tests.training import tiny
from tests.training.test_loop import final_state, lines, run


def train_tiny(workdir, changed=None, *, devices=2, **settings):
    """Trains the tiny experiment after `changed` has changed it."""
    config = tiny.Config(workdir=workdir)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))
    experiment = tiny.build(config)
    experiment = experiment if changed is None else changed(experiment)
    parallel = DataParallel(tuple(jax.devices()[:devices]))
    return train(experiment, config, experiment_file=tiny.__file__, parallel=parallel)


def files_in(folder):
    return sorted(path for path in folder.rglob("*"))


class Without:
    """Examples that lack an entry."""

    def __init__(self, size, key):
        self.examples, self.key = tiny.Squares(size), key

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        example = dict(self.examples[index])
        example.pop(self.key, None)
        return example


def with_metric(metric):
    """Adds a metric to the tiny experiment."""

    def change(experiment):
        task = dataclasses.replace(experiment.task, metrics=(metric,))
        return dataclasses.replace(experiment, task=task)

    return change


def evaluated_on(**sources):
    def change(experiment):
        return dataclasses.replace(experiment, evaluation={**experiment.evaluation, **sources})

    return change


def no_step_was_taken(workdir):
    return not lines(workdir) and not list((workdir / "checkpoints").iterdir())


def test_a_mistake_in_a_metric_of_ones_own_is_found_before_the_first_step(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mistaken(NegativeLogLikelihood):
        def counts(self, example, prediction):
            return {}["probabilites"]

    with pytest.raises(FaultyEvaluation) as failure:
        train_tiny(tmp_path, with_metric(Mistaken()))
    message = str(failure.value)
    assert "scoring example 'square_100' of split 'validation' fails: KeyErr" in message
    assert "'probabilites'" in message
    assert __file__ in message
    assert "\n" not in message
    assert no_step_was_taken(tmp_path)


@pytest.mark.parametrize("key", ["image", "labels"])
@pytest.mark.parametrize("split", ["validation", "test", "train"])
def test_an_entry_that_examples_lack_is_named_before_the_first_step(tmp_path, split, key):
    def change(experiment):
        if split == "train":
            return dataclasses.replace(experiment, train=lambda: Without(4, key))
        return evaluated_on(**{split: lambda: Without(4, key)})(experiment)

    workdir = tmp_path / "run"
    message = rf"problems in {split}:\n  example 0 of 4, id 'square_0': it has no '{key}'; it has"
    with pytest.raises(BadData, match=message):
        train_tiny(workdir, change)
    assert not workdir.exists()


def test_a_split_without_examples_is_named_before_the_first_step(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(BadData, match="test: no examples"):
        train_tiny(workdir, evaluated_on(test=lambda: tiny.Squares(0)))
    assert not workdir.exists()


def test_examples_without_an_id_are_scored_under_their_numbers(tmp_path):
    results = train_tiny(tmp_path, evaluated_on(test=lambda: Without(2, "id")), num_steps=1)
    assert [row["id"] for row in results["test"].examples] == ["0", "1"]


def test_a_best_metric_that_is_not_scored_is_named_before_the_first_step(tmp_path):
    def change(experiment):
        return dataclasses.replace(experiment, best_metric="mean_iuo")

    words = (
        "is 'mean_iuo'; expected a metric of split 'validation' that is one number; did you mean"
    )
    with pytest.raises(FaultyEvaluation, match=words):
        train_tiny(tmp_path, change)
    assert no_step_was_taken(tmp_path)


def test_a_fault_in_an_evaluation_loses_no_training(tmp_path):
    """The state is saved first; the resumed run makes up for the evaluation."""
    run(tmp_path / "whole")

    seen = []

    class Mistaken(NegativeLogLikelihood):
        def counts(self, example, prediction):
            seen.append(example["id"])
            # The start tries one example of both splits; then comes the evaluation of step 3.
            if len(seen) == 5:
                raise ZeroDivisionError("my mistake")
            return super().counts(example, prediction)

    with pytest.raises(ZeroDivisionError, match="my mistake"):
        train_tiny(tmp_path / "run", with_metric(Mistaken()))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step == 3
        assert not checkpoints.evaluated(3)
    run(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    chex.assert_trees_all_equal(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_an_evaluation_that_was_killed_after_it_logged_is_logged_once(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "run")
    metrics = tmp_path / "run" / "checkpoints" / "6" / "metrics" / "metrics"
    metrics.write_text("{}")  # as the checkpoint was saved
    results = run(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert set(results) == {"validation", "test"}
    with Checkpoints(tmp_path / "run" / "checkpoints", best_metric="mean_iou") as checkpoints:
        assert checkpoints.evaluated(6)


def test_a_start_that_failed_does_not_refuse_the_corrected_command(tmp_path):
    def wrong_weights(experiment):
        def initialize(variables):
            raise ValueError("no such weights")

        return dataclasses.replace(experiment, initialize=initialize)

    with pytest.raises(ValueError, match="no such weights"):
        train_tiny(tmp_path, wrong_weights)
    run(tmp_path, seed=3, num_steps=2)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["seed"] == 3
    with pytest.raises(ChangedConfiguration, match=r"seed: 3 -> 4"):
        run(tmp_path, seed=4, num_steps=2)


def test_a_second_run_is_refused_in_one_line_and_changes_nothing(tmp_path):
    run(tmp_path, num_steps=2)
    with RunLock(tmp_path):
        before = files_in(tmp_path)
        with pytest.raises(RunLocked, match="is in use by process"):
            run(tmp_path, num_steps=4, accept_changes=True)
        with pytest.raises(SystemExit, match=f"error: {tmp_path} is in use by process"):
            launch.run(tiny.Config, tiny.build, tiny.__file__, ["--workdir", str(tmp_path)])
        assert files_in(tmp_path) == before
    run(tmp_path, num_steps=4, accept_changes=True)


@pytest.mark.parametrize("schedule", ["constant", "poly", "step", "cosine"])
def test_a_run_of_no_steps_evaluates_whatever_its_schedule(tmp_path, schedule):
    optimizer = dataclasses.replace(
        tiny.Config.optimizer, schedule=schedule, warmup_steps=1 if schedule == "step" else 0
    )
    results = run(tmp_path, num_steps=0, optimizer=optimizer)
    assert set(results) == {"validation", "test"}
    with Checkpoints(tmp_path / "checkpoints", best_metric="mean_iou") as checkpoints:
        assert checkpoints.steps == [0]
        assert checkpoints.best_step == 0
    assert [line["step"] for line in lines(tmp_path)] == [0, 0]


def test_a_run_of_no_steps_goes_on_and_keeps_its_first_scores(tmp_path):
    run(tmp_path, num_steps=0)
    first = lines(tmp_path)
    run(tmp_path, num_steps=2, accept_changes=True)
    assert lines(tmp_path)[:2] == first
    assert lines(tmp_path)[-1]["step"] == 2


def test_a_run_is_trained_scored_and_loaded_with_its_precision(tmp_path, monkeypatch):
    seen = {}

    def recorded(name):
        function = getattr(tiny.SemanticTask, name)

        def run(*arguments, **options):
            seen.setdefault(name, set()).add(jax.config.jax_default_matmul_precision)
            return function(*arguments, **options)

        return run

    for name in ("loss", "predict"):
        monkeypatch.setattr(tiny.SemanticTask, name, recorded(name))
    config = dataclasses.replace(tiny.Config(workdir=tmp_path), matmul_precision="highest")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    train(tiny.build(config), config, experiment_file=tiny.__file__)
    assert seen == {"loss": {"highest"}, "predict": {"highest"}}
    assert read_config(tmp_path)["config"]["matmul_precision"] == "highest"

    seen.clear()
    image = tiny.Squares(1)[0]["image"]
    loaded = load_run(tmp_path)
    loaded.predict(image)
    list(predict_all(loaded, [{"id": "one", "image": image}]))
    main(["evaluate", str(tmp_path), "--split", "test"])
    assert seen == {"predict": {"highest"}}


def test_a_jump_of_the_learning_rate_is_printed_with_both_values(tmp_path, capsys):
    run(tmp_path, num_steps=4)
    assert "learning rate of" not in capsys.readouterr().err
    run(tmp_path, num_steps=8, accept_changes=True)
    rate = 0.05 * (1 - 4 / 8) ** 0.9
    line = f"the learning rate of step 5 changes from 0, as the run was planned, to {rate:.6g}"
    assert line in capsys.readouterr().err
    logged = [line for line in lines(tmp_path) if (line["step"], line["split"]) == (5, "train")]
    assert f"{logged[0]['learning_rate']:.5g}" == f"{rate:.5g}"
    run(tmp_path, num_steps=8, accept_changes=True)
    assert "changes from" not in capsys.readouterr().err


def test_data_that_grew_or_shrank_is_printed_with_both_counts(tmp_path, capsys):
    settings = {"num_steps": 4, "checkpoint_every": 2, "eval_every": None}
    train_tiny(tmp_path, **settings)
    (tmp_path / "checkpoints" / "4").rename(tmp_path / "4")

    def change(experiment):
        experiment = evaluated_on(validation=lambda: tiny.Squares(3, 100))(experiment)
        return dataclasses.replace(experiment, train=lambda: tiny.Squares(15))

    capsys.readouterr()
    train_tiny(tmp_path, change, **settings)
    shown = capsys.readouterr().err
    assert "train has 15 examples, and had 12: they come in another order from here on" in shown
    assert "validation has 3 examples, and had 5: its scores do not compare" in shown
    assert "test has" not in shown


def test_training_images_of_another_type_are_printed_with_both_types(tmp_path, capsys):
    class Wide(tiny.Squares):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "image": example["image"].astype(np.uint16)}

    settings = {"num_steps": 4, "checkpoint_every": 2, "eval_every": None}
    train_tiny(tmp_path, **settings)
    with Checkpoints(tmp_path / "checkpoints", best_metric="mean_iou") as checkpoints:
        assert checkpoints.data(4)["pixels"]["types"] == ["float32"]
        low, high = checkpoints.data(4)["pixels"]["range"]
        assert 0 <= low < 10
        assert 130 < high < 140  # 80 for a square, and noise below 60
    (tmp_path / "checkpoints" / "4").rename(tmp_path / "4")
    capsys.readouterr()
    train_tiny(tmp_path, lambda e: dataclasses.replace(e, train=lambda: Wide(12)), **settings)
    assert "the training images are uint16, and were float32" in capsys.readouterr().err


class PooledNet(nn.Module):
    """Class scores from the pixel and from the pooled image."""

    @nn.compact
    def __call__(self, images, train=False):
        pooled = nn.Dense(4)(images.mean(axis=(1, 2), keepdims=True))
        pooled = nn.relu(BatchNorm(name="pooled_norm")(pooled, train))
        return {"logits": nn.Dense(2)(images) + nn.Dense(2)(pooled)}


def with_pooled_norm(experiment):
    """The tiny network with a batch norm over the whole image, as ASPP's image pooling has."""
    model = PooledNet()
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, model=model))


def test_batch_norm_over_a_single_value_is_refused_before_the_first_step(tmp_path):
    for settings, devices in (
        ({"batch_size": 1}, 1),
        ({"batch_size": 4, "micro_batches": 4}, 1),
    ):
        with pytest.raises(SingleValueStatistics) as failure:
            train_tiny(tmp_path / "one", with_pooled_norm, devices=devices, **settings)
        parts = settings.get("micro_batches", 1)
        assert "batch norm pooled_norm has one value per channel" in str(failure.value)
        assert f"take a batch of at least {2 * parts}, on one device or two" in str(failure.value)
        assert ("fewer micro-batches" in str(failure.value)) == (parts > 1)
        assert no_step_was_taken(tmp_path / "one")
    for settings, devices in (
        ({"batch_size": 2}, 1),
        ({"batch_size": 2}, 2),  # the statistics are over both
        ({"batch_size": 8, "micro_batches": 4}, 2),
    ):
        workdir = tmp_path / f"{devices}_{settings['batch_size']}"
        train_tiny(workdir, with_pooled_norm, devices=devices, num_steps=1, **settings)
        assert np.isfinite(lines(workdir)[0]["loss"])
