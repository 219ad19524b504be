"""The search for the CRF's parameters: where it looks, what it scores, what it says."""

import dataclasses
import importlib
import json
import os

import numpy as np
import pytest
import tyro

from segjax.commands import crf
from segjax.commands.crf import crf_command, search, settings_table
from segjax.commands.errors import UserError
from segjax.evaluation import ConfusionMatrix
from segjax.ops.dense_crf import CrfConfig, refine_probabilities
from segjax.trained import load_run, predict_all
from segjax.training.experiment import load_module
from segjax.training.loop import train

# Its own refinement, which swaps the classes, must not be in what the search refines.
EXPERIMENT = """
import dataclasses
from tests.training import tiny
from tests.training.tiny import Config

def swap(probabilities, image):
    return probabilities[..., ::-1]

def build(config):
    experiment = tiny.build(config)
    task = dataclasses.replace(experiment.task, refine=swap)
    return dataclasses.replace(experiment, task=task)
"""
RANGES = {"appearance_weight": (3, 5), "position_sigma": (30, 40, 60), "color_sigma": (4,)}


@pytest.fixture(autouse=True)
def same_flags(monkeypatch):
    """Commands set XLA's flags for their process, which here is that of all tests."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crf")
    (folder / "swapped.py").write_text(EXPERIMENT)
    module = load_module(folder / "swapped.py")
    config = module.Config(workdir=folder / "run")
    train(module.build(config), config, experiment_file=module.__file__)
    return config.workdir


@pytest.fixture
def tried(monkeypatch):
    """Replaces the CRF by one whose mistakes grow with the distance from (4, 45, 4)."""
    settings = []

    def refine(probabilities, image, config):
        settings.append((config.appearance_weight, config.position_sigma, config.color_sigma))
        distance = np.abs(np.array(settings[-1]) - (4, 45, 4)) / (1, 10, 1)
        wrong = np.arange(len(probabilities)) < 10 * distance.sum()
        return np.where(wrong[:, None, None], probabilities[..., ::-1], probabilities)

    # segjax.ops.dense_crf is the name of a function too, which hides the module.
    module = importlib.import_module("segjax.ops.dense_crf")
    monkeypatch.setattr(module, "refine_probabilities", refine)
    return settings


def perfect_predictions():
    """One image of two classes, each in half of every row."""
    probabilities = np.tile(np.eye(2, dtype=np.float32), (100, 1, 1))
    return [(probabilities, np.zeros((100, 2, 3), np.uint8), probabilities.argmax(-1), "ab")]


def test_all_combinations_are_scored_and_then_the_neighbours_of_the_best(tried):
    found = search(perfect_predictions(), RANGES, refinements=0)
    assert set(tried) == {(w, s, 4) for w in (3, 5) for s in (30, 40, 60)}
    assert len(tried) == 6
    assert found.unrefined == 1
    assert found.ranked[0].values == {
        "appearance_weight": 3,
        "position_sigma": 40,
        "color_sigma": 4,
    }

    tried.clear()
    found = search(perfect_predictions(), RANGES, refinements=1)
    # Half of the smallest distance; a single value stays, and nothing is tried twice.
    around = {(w, s, 4) for w in (2, 3, 4) for s in (35, 40, 45)}
    coarse = {(w, s, 4) for w in (3, 5) for s in (30, 40, 60)}
    assert set(tried[6:]) == around - coarse
    assert tuple(found.ranked[0].values.values()) == (4, 45, 4)
    assert found.ranked[0].mean_iou == 1
    scores = [setting.mean_iou for setting in found.ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(tried) == len(set(tried))


def test_no_neighbour_leaves_the_positive_numbers(tried):
    ranges = {"appearance_weight": (1, 4), "position_sigma": (1, 60), "color_sigma": (5,)}
    search(perfect_predictions(), ranges, refinements=3)
    assert min(min(setting) for setting in tried) > 0


def test_the_table_shows_the_score_without_a_crf_first_and_then_the_best(tried):
    found = search(perfect_predictions(), RANGES, refinements=1)
    lines = settings_table(dataclasses.replace(found, unrefined=0.5)).splitlines()
    assert lines[0].split() == [*RANGES, "mean_iou", "gain"]
    assert lines[1].split() == ["no", "CRF", "0.5000"]
    assert lines[2].split() == ["4", "45", "4", "1.0000", "+0.5000"]
    assert len(lines) == 2 + 10 + 1
    assert lines[-1] == f"... and {len(found.ranked) - 10} more"


def test_the_command_scores_refined_predictions_of_the_checkpoint(run, capsys):
    arguments = [run, "--split", "test", "--images", "2", "--refinements", "0"]
    arguments += ["--appearance-weight", "1", "--position-sigma", "5"]
    arguments += ["--color-sigma", "15", "40", "--checkpoint", "last"]
    tyro.cli(crf_command, args=[str(a) for a in arguments], config=(tyro.conf.FlagCreatePairsOff,))
    shown = capsys.readouterr().out
    written = json.loads((run / "crf_search.json").read_text())

    trained = load_run(run, "last")
    task = dataclasses.replace(trained.task, refine=None)
    source = trained.experiment.evaluation["test"]()
    unrefined = dataclasses.replace(trained, task=task)
    pairs = list(predict_all(unrefined, iter([source[0], source[1]]), batch_size=4))

    def mean_iou(refine):
        matrix = ConfusionMatrix(2)
        for example, prediction in pairs:
            refined = refine(prediction["probabilities"], example["image"])
            matrix.update(example["labels"], refined.argmax(axis=-1))
        return matrix.result()["mean_iou"]

    assert (written["split"], written["step"], written["images"]) == ("test", 6, 2)
    assert written["unrefined_mean_iou"] == mean_iou(lambda probabilities, image: probabilities)
    assert {setting["color_sigma"] for setting in written["settings"]} == {15, 40}
    for setting in written["settings"]:
        score = setting.pop("mean_iou")
        config = CrfConfig(**setting)
        assert score == mean_iou(lambda p, image, c=config: refine_probabilities(p, image, c))
    assert str(run / "crf_search.json") in shown
    best = written["settings"][0]["color_sigma"]
    assert f"prediction.crf.position_sigma=5 prediction.crf.color_sigma={best:g}" in shown


def test_mistakes_are_named_before_the_model_is_read(run, tmp_path, monkeypatch):
    for options, named in (
        ({"images": 0}, "--images 0"),
        ({"refinements": -1}, "--refinements -1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"color_sigma": ()}, "--color-sigma"),
        ({"position_sigma": (30.0, 0.0)}, "--position-sigma 30.0 0.0"),
    ):
        with pytest.raises(UserError, match=named):
            crf_command(tmp_path, **options)
    with pytest.raises(UserError, match="--split valid: the experiment"):
        crf_command(run, split="valid")
    trained = load_run(run)
    other = dataclasses.replace(trained, task=object())
    monkeypatch.setattr(crf, "load_with_splits", lambda *_, **__: other)
    with pytest.raises(UserError, match="does not predict class probabilities"):
        crf_command(run)
