"""`segjax evaluate`: other settings of prediction, another folder, a damaged checkpoint."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from segjax.cli import main
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


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_scores_and_pictures_go_to_another_folder_and_the_run_stays_as_it_is(
    run, trained, tmp_path, capsys
):
    before, output = files_of(run), tmp_path / "output"
    main(["evaluate", str(run), "--checkpoint", "last", "--output", str(output)])
    shown = capsys.readouterr().out
    assert files_of(run) == before
    for split in ("validation", "test"):
        assert str(output / "evaluation" / f"{split}.json") in shown
        assert scores(output, split) == scores(trained, split)
    assert list((output / "predictions").glob("*.png"))
    assert "report" not in shown
    assert {path.name for path in output.iterdir()} == {"evaluation", "predictions"}


def test_a_folder_that_cannot_be_written_is_named_before_the_checkpoint_is_read(
    run, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "output"
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--output", str(output)])
    message = f"error: {output} cannot be written: Not a directory; give --output DIR"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_checkpoint_is_refused_in_one_line(run, tmp_path, capsys, command):
    largest = max((run / "checkpoints" / "6" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    arguments = [command, str(run), "--checkpoint", "6"]
    if command == "predict":
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "image.png")
        arguments[2:2] = [str(tmp_path / "image.png"), "--output", str(tmp_path / "labels")]
    with pytest.raises(SystemExit):
        main(arguments)
    message = capsys.readouterr().err
    assert f"error: the checkpoint {run / 'checkpoints' / '6'} is damaged: its state/" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "labels").exists()
