"""Every experiment file runs a few steps on tiny data in the official layouts."""

import json
import runpy
from pathlib import Path

import jax
import pytest

from segjax.data.prepare import prepare
from segjax.training.experiment import load_module
from segjax.training.launch import run
from segjax.training.logging import read_metrics
from tests.data import official_layouts

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FILES = sorted(path for path in EXPERIMENTS.rglob("*.py") if "benchmarks" not in path.parts)
SMALL = [
    *("--train.num-steps", "2", "--train.batch-size", "4", "--train.log-every", "1"),
    *("--train.eval-every", "1", "--train.checkpoint-every", "1", "--train.num-workers", "0"),
    *("--unet.features", "2", "--unet.depth", "1", "--unet.tile", "64", "--seed", "3"),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All data sets of the experiments, prepared from tiny trees."""
    folder = tmp_path_factory.mktemp("data")
    official_layouts.write_isbi2012(folder / "isbi2012")
    official_layouts.write_cell_tracking(folder / "cell_tracking")
    official_layouts.write_drive(folder / "drive")
    official_layouts.write_chasedb1(folder / "chasedb1")
    for name, source in {
        "isbi2012": "isbi2012",
        "cell_tracking/dic_c2dh_hela": "cell_tracking",
        "cell_tracking/phc_c2dh_u373": "cell_tracking",
        "drive": "drive",
        "chasedb1": "chasedb1",
    }.items():
        prepare(name, data_dir=folder, source=folder / source)
    return folder


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(EXPERIMENTS)) for f in FILES])
def test_an_experiment_trains_evaluates_and_reports(file, data_dir, tmp_path):
    module = load_module(file)
    workdir = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
        arguments = ["--workdir", str(workdir), "--data-dir", str(data_dir), *SMALL]
        results = run(module.Config, module.build, file, arguments)
    best_metric = module.build(module.Config(workdir=workdir)).best_metric
    assert all(best_metric in result.metrics for result in results.values())
    assert max(line["step"] for line in read_metrics(workdir / "metrics.jsonl")) == 2
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 3
    assert (workdir / "report.html").is_file()
    assert list((workdir / "predictions").glob("*.png"))


@pytest.mark.parametrize("file", FILES, ids=[str(f.relative_to(EXPERIMENTS)) for f in FILES])
def test_an_experiment_says_numbers_protocol_cost_and_command(file):
    text = load_module(file).__doc__
    for word in ("Cost", "Command", f"python experiments/{file.relative_to(EXPERIMENTS)}"):
        assert word in text
    assert "Paper" in text or "Published" in text


def test_an_experiment_without_its_data_says_how_to_prepare_it(tmp_path, monkeypatch):
    arguments = ["drive.py", "--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match="segjax data prepare drive --source DIR"):
        runpy.run_path(str(EXPERIMENTS / "unet" / "drive.py"), run_name="__main__")
    assert not (tmp_path / "run").exists()
