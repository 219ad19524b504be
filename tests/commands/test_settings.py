"""`--set` of `segjax evaluate` and `segjax predict`: the same variables, another prediction."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import segjax
from segjax.cli import main
from segjax.commands.settings import read_settings
from segjax.data.images import read_image
from segjax.training.evaluate import evaluation_name
from segjax.training.experiment import load_experiment, load_module
from segjax.training.loop import train
from tests.training import tiny

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
    assert read_settings(settings) == {"network.pixel_range": [0, 65535]}
    assert evaluation_name("val", settings) == "val@pixel_range=0,65535"


@pytest.fixture
def image(tmp_path):
    """A file of a noisy square, whose labels are not the same at every scale."""
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).normal(0, 60, (16, 16))
    pixels = tiny.Squares(1)[0]["image"][..., 0] + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def test_predictions_are_those_of_the_settings_and_a_record_names_them(run, image, tmp_path):
    arguments = ["predict", str(run), str(image), "--output"]
    main([*arguments, str(tmp_path / "plain")])
    settings = ["prediction.scales=[0.5]", "prediction.flip=true"]
    main([*arguments, str(tmp_path / "out"), "--set", *settings])
    changes = {"prediction.scales": [0.5], "prediction.flip": True}
    expected = segjax.load_run(run, settings=changes).predict(read_image(image))["labels"]
    labels, plain = (
        read_image(tmp_path / folder / "labels" / "image.png")[..., 0]
        for folder in ("out", "plain")
    )
    np.testing.assert_array_equal(labels, expected)
    assert (labels != plain).any()
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["settings"] == changes
    assert (record["model"], record["weights"]) == (str(run), None)
    assert record["step"] == segjax.load_run(run).step
    assert record["environment"]["versions"]["segjax"] == segjax.__version__


def test_a_folder_holds_the_predictions_of_one_setting(run, image, tmp_path, capsys):
    other = shutil.copy(image, tmp_path / "other.png")
    arguments = ["predict", str(run), str(other), "--output", str(tmp_path / "out")]
    main(["predict", str(run), str(image), "--output", str(tmp_path / "out")])
    main(arguments)  # more images, predicted alike
    before = sorted((tmp_path / "out" / "labels").iterdir())
    assert [path.name for path in before] == ["image.png", "other.png"]
    again = [*arguments, "--set", "prediction.flip=true"]
    again[2] = str(shutil.copy(image, tmp_path / "third.png"))
    with pytest.raises(SystemExit):
        main(again)
    message = capsys.readouterr().err
    assert "predicted otherwise (settings.prediction.flip None -> True)" in message
    assert sorted((tmp_path / "out" / "labels").iterdir()) == before
    main([*again, "--overwrite"])
    record = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert record["settings"] == {"prediction.flip": True}
    (tmp_path / "out" / "predict.json").write_text("mine")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "predict.json exists already, and is no record" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("train.num_steps=3", "expected prediction.NAME=VALUE"),
        ("prediction.flip", "expected NAME=VALUE"),
        ("prediction.flop=true", "has no such setting; did you mean 'prediction.flip'?"),
        ("scales=[2.0]", "has no such setting; did you mean 'prediction.scales'?"),
        ("prediction.output_stride=8", "there is prediction.scales, prediction.flip"),
        ("prediction.flip=yes", "prediction.flip='yes'; expected bool"),
    ],
)
def test_what_is_no_setting_of_prediction_is_refused(
    setting, complaint, run, image, tmp_path, capsys
):
    for arguments in (["evaluate"], ["predict", str(image), "--output", str(tmp_path / "out")]):
        arguments.insert(1, str(run))
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--set", setting])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert complaint in message
        assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
