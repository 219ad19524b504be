"""A run directory that has moved alone: every command on it, and its training, go on."""

import dataclasses
import json
import os
import shutil
import sys

import cv2
import numpy as np
import pytest

import segjax
from segjax.cli import main
from segjax.commands import launch
from segjax.data.images import read_image
from segjax.training.experiment import load_module
from segjax.training.loop import train
from tests.training import tiny

# It imports a package beside it, reads a file beside it and data elsewhere.
FILES = {
    "moving.py": """
import dataclasses
from functools import partial
from pathlib import Path
from moving_parts import Squares, networks
from tests.training import tiny
from tests.training.tiny import Config

CLASSES = tuple(Path(__file__).with_name("classes.txt").read_text().split())

def open_squares(config):
    return Squares(int((config.data_dir / "size.txt").read_text()))

def build(config):
    experiment = tiny.build(config)
    task = networks.small(dataclasses.replace(experiment.task, classes=CLASSES))
    splits = {"validation": partial(open_squares, config)}
    return dataclasses.replace(
        experiment, task=task, train=partial(open_squares, config), evaluation=splits
    )
""",
    "moving_parts/__init__.py": "from tests.training.tiny import Squares\n",
    "moving_parts/networks/__init__.py": "from .small import small\n",
    "moving_parts/networks/small.py": (
        "import dataclasses\n"
        "def small(task):\n"
        "    return dataclasses.replace(task, model=task.model.clone(features=3))\n"
    ),
    "classes.txt": "ground square",
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run of two steps, with neither its experiment nor its data."""
    place = tmp_path_factory.mktemp("place")
    (place / "mine").mkdir()
    for name, text in FILES.items():
        path = place / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (place / "data").mkdir()
    (place / "data" / "size.txt").write_text("8")
    module = load_module(place / "mine" / "moving.py")
    config = module.Config(workdir=place / "run", data_dir=place / "data")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=2))
    train(module.build(config), config, experiment_file=module.__file__)
    for name in [name for name in sys.modules if name.startswith("moving_parts")]:
        del sys.modules[name]  # as in another process
    run = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.move(place / "run", run)
    shutil.rmtree(place)
    return run


@pytest.fixture
def run(moved, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return shutil.copytree(moved, tmp_path / "run")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "new_data").mkdir()
    (tmp_path / "new_data" / "size.txt").write_text("8")
    return tmp_path / "new_data"


def test_a_moved_run_predicts_and_reports(run, tmp_path):
    image = tiny.Squares(1)[0]["image"].astype(np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    main(["predict", "run", "image.png", "--output", "out"])
    labels = segjax.load_run("run").predict(image)["labels"]
    np.testing.assert_array_equal(read_image(tmp_path / "out/labels/image.png")[..., 0], labels)
    main(["report", "run", "--output", "page.html"])
    assert "<h1>run</h1>" in (tmp_path / "page.html").read_text()


def test_a_moved_run_is_scored_on_data_named_anew(run, data, capsys):
    before = json.loads((run / "evaluation" / "validation.json").read_text())
    with pytest.raises(SystemExit):
        main(["evaluate", "run"])
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "size.txt: No such file or directory" in message
    assert "--data-dir DIR" in message
    main(["evaluate", "run", "--checkpoint", "last", "--data-dir", "new_data"])
    assert json.loads((run / "evaluation" / "validation.json").read_text()) == before
    splits = segjax.load_run("run", data_dir="new_data").experiment.evaluation
    assert len(splits["validation"]()) == 8


def test_a_moved_run_is_resumed_by_its_copy(run, data, capsys):
    module = load_module(run / "experiment" / "moving.py")
    arguments = ["--workdir", "run", "--data-dir", "new_data", "--train.num-steps"]
    with pytest.raises(SystemExit, match=r"train\.num_steps: 2 -> 4"):
        launch.run(module.Config, module.build, module.__file__, [*arguments, "4"])
    launch.run(
        module.Config,
        module.build,
        module.__file__,
        [*arguments, "4", "--accept-changes", "True"],
    )
    assert "resuming from step 2" in capsys.readouterr().err
    assert segjax.load_run(run.rename("again"), "last").step == 4


def test_a_run_needs_a_python_file_that_rebuilds_it(tmp_path):
    config = tiny.Config(workdir=tmp_path / "run")
    (tmp_path / "notes.ipynb").write_text("{}")
    for name in ("notes.ipynb", "gone.py"):
        with pytest.raises(ValueError, match=rf"{name}'.*%%writefile"):
            train(tiny.build(config), config, experiment_file=tmp_path / name)
    assert not config.workdir.exists()
