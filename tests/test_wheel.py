"""The wheel is useful by itself: installed alone, it trains, evaluates and predicts anywhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.test_typing import SCRIPT, check

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / ("constraints.txt" if sys.version_info >= (3, 12) else "constraints-py311.txt")
TINY = [
    *("--train.num-steps", "2", "--train.batch-size", "2", "--train.log-every", "1"),
    *("--train.eval-every", "2", "--train.checkpoint-every", "1", "--train.num-workers", "0"),
    *("--network.features", "2", "--network.depth", "1", "--network.tile", "64"),
]


def ran(*command, cwd):
    """Runs a command that should end well, without this checkout in sight; returns its output."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def built(target, source, folder):
    """Builds source distribution or wheel of a project folder with the hatchling that is here."""
    program = (
        "import sys\nfrom hatchling import build\n"
        f"print(build.build_{target}(sys.argv[1], {{}}), file=sys.stderr)"
    )
    folder.mkdir()
    ran(sys.executable, "-c", program, folder, cwd=source)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel") / "built")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of a clean environment in which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("environment")
    ran(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ran(*pip, "install", "--constraint", CONSTRAINTS, wheel, cwd=folder)
    return python


def test_the_wheel_has_the_experiments_and_no_benchmarks_or_results(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    experiments = ROOT / "experiments"
    expected = {
        f"segjax/experiments/{path.relative_to(experiments)}"
        for path in experiments.rglob("*.py")
        if not {"benchmarks", "reproduce.py"} & {*path.parts}
    }
    assert {name for name in names if name.startswith("segjax/experiments/")} == expected
    assert {"segjax/py.typed", "segjax/data/datasets/isbi2012/README.md"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"segjax"}


def test_the_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    archive = built("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as members:
        members.extractall(tmp_path, filter="data")
    [source] = tmp_path.glob("segjax-*")
    again = built("wheel", source, tmp_path / "wheel")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_an_installed_wheel_lists_copies_trains_evaluates_and_predicts(python, tmp_path):
    segjax = python.with_name("segjax")
    here = {"cwd": tmp_path}
    assert "experiments" in ran(segjax, "--help", **here)
    assert "unet/isbi2012" in ran(segjax, "experiments", "list", **here)
    ran(segjax, "experiments", "copy", "quickstart", "mine", **here)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "quickstart.py"]

    train = [python, "mine/quickstart.py", "--workdir", "run", *TINY]
    shown = ran(*train, **here)
    assert "python mine/quickstart.py --help" in shown.replace(str(python), "python")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["commit"] is None
    assert environment["versions"]["segjax"] is not None
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["experiment"] == str(tmp_path / "mine" / "quickstart.py")
    steps = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    ran(*train, **here)  # resumes, and finds nothing left to do
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == steps

    assert "foreground_iou" in ran(segjax, "evaluate", "run", "--split", "test", **here)
    shutil.rmtree(tmp_path / "mine")  # the run has a copy
    cv2.imwrite(str(tmp_path / "cells.png"), np.full((90, 100), 90, np.uint8))
    ran(segjax, "predict", "run", "cells.png", "--output", "out", **here)
    assert cv2.imread(str(tmp_path / "out" / "labels" / "cells.png")).shape == (90, 100, 3)


@pytest.mark.slow
def test_a_script_passes_pyright_where_the_wheel_is_installed(python, tmp_path):
    pytest.importorskip("pyright")
    assert check(SCRIPT, tmp_path, python=str(python))[0] == []
