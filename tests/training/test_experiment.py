"""Experiments found again from their run directories."""

import json
from pathlib import Path

import pytest

from segjax.training import configuration
from segjax.training.experiment import load_module, load_run

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def write_run(folder, file, config):
    folder.mkdir()
    values = {"experiment": str(file), "command": "", "config": configuration.to_dict(config)}
    (folder / "config.json").write_text(json.dumps(values))


def test_a_run_is_rebuilt_with_its_configuration_in_the_place_where_it_is_now(tmp_path):
    module = load_module(EXPERIMENTS / "unet" / "drive.py")
    write_run(tmp_path / "run", module.__file__, module.Config(workdir=Path("elsewhere"), seed=5))
    _, config = load_run(tmp_path / "run", data_dir=tmp_path / "data")
    changed = {"workdir": tmp_path / "run", "data_dir": tmp_path / "data", "seed": 5}
    assert configuration.to_dict(config) == configuration.to_dict(module.Config(**changed))


def test_a_run_from_another_checkout_finds_its_experiment_in_this_one(tmp_path):
    module = load_module(EXPERIMENTS / "unet" / "drive.py")
    other = Path("/somewhere/else/experiments/unet/drive.py")
    write_run(tmp_path / "run", other, module.Config(workdir=tmp_path))
    experiment, _ = load_run(tmp_path / "run")
    assert experiment.task.classes == ("background", "vessel")


def test_a_vanished_experiment_file_is_named(tmp_path):
    module = load_module(EXPERIMENTS / "unet" / "drive.py")
    write_run(tmp_path / "run", tmp_path / "gone.py", module.Config(workdir=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gone\.py"):
        load_run(tmp_path / "run")


def test_a_file_that_is_no_experiment_is_refused(tmp_path):
    (tmp_path / "other.py").write_text("Config = 1\n")
    with pytest.raises(ValueError, match="has no build"):
        load_module(tmp_path / "other.py")
