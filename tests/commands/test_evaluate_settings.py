"""`segjax evaluate --set`: the same variables, predicted with in another way."""

import json
import os
import shutil

import pytest

from segjax.cli import main
from segjax.commands.evaluate import _short
from segjax.commands.models import _read_settings
from segjax.training.experiment import load_experiment, load_module
from segjax.training.loop import train

EXPERIMENT = """
import dataclasses
from dataclasses import dataclass
from segjax.inference.views import scales_and_flips
from tests.training import tiny

@dataclass(frozen=True)
class PredictionConfig:
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

@dataclass(frozen=True)
class Config(tiny.Config):
    prediction: PredictionConfig = PredictionConfig()

def build(config):
    experiment = tiny.build(config)
    views = scales_and_flips(config.prediction.scales, flip=config.prediction.flip)
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, views=views))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "views.py").write_text(EXPERIMENT)
    module = load_module(folder / "views.py")
    config = module.Config(workdir=folder / "run")
    train(module.build(config), config, experiment_file=module.__file__)
    return config.workdir


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    return shutil.copytree(trained, tmp_path / "run")


def scores(run, name):
    return json.loads((run / "evaluation" / f"{name}.json").read_text())["metrics"]


def test_settings_reach_the_task_and_the_scores_stand_beside_the_runs_own(run, capsys):
    before = {path.name: path.read_bytes() for path in (run / "evaluation").iterdir()}
    settings = ["prediction.scales=[1.0, 2.0]", "prediction.flip=true"]
    main(["evaluate", str(run), "--split", "test", "--checkpoint", "last", "--set", *settings])
    assert "test@scales=1.0,2.0@flip=true" in capsys.readouterr().out
    changed = scores(run, "test@scales=1.0,2.0@flip=true")
    assert changed["negative_log_likelihood"] != scores(run, "test")["negative_log_likelihood"]
    for name, content in before.items():
        assert (run / "evaluation" / name).read_bytes() == content
    assert "test@scales" in (run / "report.html").read_text()
    assert load_experiment(run)[1].prediction.flip is False


def test_the_range_of_pixels_is_a_setting_that_may_change():
    settings = ["network.pixel_range=[0,65535]"]
    assert _read_settings(settings) == {"network.pixel_range": [0, 65535]}
    assert _short(settings) == ["pixel_range=0,65535"]


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.num_steps=3", "expected prediction.KEY=VALUE"),
        ("prediction.flip", "expected prediction.KEY=VALUE"),
        ("prediction.flop=true", "unknown key 'flop'; did you mean 'flip'?"),
        ("prediction.flip=yes", "prediction.flip='yes'; expected bool"),
    ],
)
def test_what_is_no_setting_of_prediction_is_refused(setting, complaint, run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), "--set", setting])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err
