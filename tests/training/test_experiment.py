"""Loading an experiment again from its run directory."""

import json
import sys
import types
from pathlib import Path

import pytest

from segjax.training import configuration, experiment_files
from segjax.training.experiment import load_experiment, load_module
from segjax.training.experiment_files import experiments_folder
from segjax.training.run_directory import open_run
from tests.training import tiny

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def run(tmp_path):
    config = tiny.Config(workdir=tmp_path / "run", seed=5, norm="batch")
    open_run(config, tiny.__file__)
    return config.workdir


def edited(run, change):
    path = run / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return run


def test_a_run_is_rebuilt_from_its_directory_wherever_that_lies_now(run, tmp_path):
    experiment, config = load_experiment(run.rename(tmp_path / "moved"))
    assert config.workdir == tmp_path / "moved"
    assert (config.seed, config.norm) == (5, "batch")
    assert experiment.task.model.norm == "batch"
    assert set(experiment.evaluation) == {"validation", "test"}


def test_a_configuration_that_no_longer_fits_is_named_with_its_file(run):
    edited(run, lambda values: values["config"].update(nrm="batch"))
    with pytest.raises(
        ValueError, match=r"run.config\.json: unknown key 'nrm'; did you mean 'norm"
    ):
        load_experiment(run)


def test_what_is_gone_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        load_experiment(tmp_path / "nothing")
    edited(run, lambda values: values.update(experiment=str(tmp_path / "gone.py")))
    with pytest.raises(FileNotFoundError, match=r"gone\.py is not there any more"):
        load_experiment(run)


def test_a_file_that_is_no_experiment_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("Config = int\n")
    with pytest.raises(ValueError, match=r"notes\.txt is not a Python file"):
        load_module(path)
    path = tmp_path / "other.py"
    path.write_text("Config = int\n")
    with pytest.raises(ValueError, match=r"other\.py has no build"):
        load_module(path)


def test_an_experiment_may_import_from_its_folder(tmp_path):
    (tmp_path / "shared_numbers.py").write_text("RATE = 3\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from shared_numbers import RATE\nclass Config: rate = RATE\ndef build(c): ...\n"
    )
    assert load_module(Path(path)).Config.rate == 3


def test_a_run_from_another_checkout_finds_its_experiment_in_this_one(run):
    elsewhere = "/somewhere/else/experiments/unet/drive.py"
    drive = configuration.to_dict(
        load_module(EXPERIMENTS / "unet" / "drive.py").Config(workdir=run)
    )
    edited(run, lambda values: values.update(experiment=elsewhere, config=drive))
    assert load_experiment(run)[0].task.classes == ("background", "vessel")


def test_a_run_keeps_its_experiment_for_when_the_file_has_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    source = tmp_path / "mine"
    source.mkdir()
    (source / "kept_numbers.py").write_text("NORM = 'group'\n")
    (source / "kept.py").write_text(
        "import dataclasses, kept_numbers\n"
        "from tests.training import tiny\n"
        "from tests.training.tiny import Config\n"
        "def build(config):\n"
        "    return tiny.build(dataclasses.replace(config, norm=kept_numbers.NORM))\n"
    )
    config = tiny.Config(workdir=tmp_path / "run")
    open_run(config, source / "kept.py")
    run = config.workdir.rename(tmp_path / "elsewhere")
    source.rename(tmp_path / "gone")
    assert load_experiment(run)[0].task.model.norm == "group"
    # The copy can resume the training.
    assert open_run(tiny.Config(workdir=run), run / "experiment" / "kept.py")
    assert {path.name for path in (run / "experiment").glob("*.py")} == {
        "kept.py",
        "kept_numbers.py",
    }
    assert load_experiment(run)[0].task.model.norm == "group"


HELPED = """
import dataclasses, helper
from tests.training import tiny
from tests.training.tiny import Config
def build(config):
    from helper import NORM as late
    assert late == helper.NORM
    return tiny.build(dataclasses.replace(config, norm=helper.NORM))
"""


def helped_run(folder, norm, *, name="helper.py"):
    """A run of an experiment that takes the norm of its network from another file."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"NORM = {norm!r}\n")
    (folder / "mine.py").write_text(HELPED)
    config = tiny.Config(workdir=folder / "run")
    open_run(config, folder / "mine.py")
    return config.workdir


def norm_of(run):
    return load_experiment(run)[0].task.model.norm


@pytest.fixture
def helper(monkeypatch):
    """The program's own module of the same name."""
    module = types.ModuleType("helper")
    monkeypatch.setitem(sys.modules, "helper", module)
    monkeypatch.setattr("sys.path", [*sys.path])
    return module


def test_runs_with_helpers_of_one_name_each_load_their_own(helper, tmp_path):
    runs = {norm: helped_run(tmp_path / norm, norm) for norm in ("group", "batch")}
    for norm in ("group", "batch", "group"):
        assert norm_of(runs[norm]) == norm
    assert sys.modules["helper"] is helper


def test_the_copy_counts_if_any_file_of_the_original_changed(helper, tmp_path):
    run = helped_run(tmp_path, "group")
    (tmp_path / "helper.py").write_text("NORM = 'batch'\n")
    assert norm_of(run) == "group"
    (tmp_path / "helper.py").unlink()
    assert norm_of(run) == "group"


def test_an_unchanged_original_may_use_what_the_copy_lacks(helper, tmp_path):
    run = helped_run(tmp_path, "group")
    (tmp_path / "mine.py").write_text(HELPED + "open(__file__ + '_data').close()\n")
    open_run(tiny.Config(workdir=run), tmp_path / "mine.py")
    (tmp_path / "mine.py_data").write_text("")
    assert norm_of(run) == "group"
    (tmp_path / "mine.py").rename(tmp_path / "gone.py")
    with pytest.raises(FileNotFoundError, match=r"experiment.mine\.py_data"):
        load_experiment(run)


def test_a_module_of_a_package_is_rebuilt_from_its_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    package = tmp_path / "site-packages" / "kept_lab"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package / "numbers.py").write_text("NORM = 'group'\n")
    text = HELPED.replace(
        "import dataclasses, helper", "import dataclasses\nfrom .. import numbers"
    )
    text = text.replace("from helper import", "from kept_lab.numbers import")
    (package / "deep" / "mine.py").write_text(text.replace("helper.", "numbers."))
    config = tiny.Config(workdir=tmp_path / "run")
    open_run(config, package / "deep" / "mine.py")
    assert norm_of(config.workdir) == "group"
    (package / "numbers.py").write_text("NORM = 'batch'\n")
    assert norm_of(config.workdir) == "group"
    (tmp_path / "site-packages").rename(tmp_path / "gone")
    run = config.workdir.rename(tmp_path / "elsewhere")
    assert norm_of(run) == "group"
    # Resumed from the copy and moved once more.
    open_run(tiny.Config(workdir=run), run / "experiment" / "kept_lab" / "deep" / "mine.py")
    assert norm_of(run.rename(tmp_path / "again")) == "group"


def test_a_module_that_is_not_installed_here_is_named(tmp_path):
    path = tmp_path / "mine.py"
    for line, words in (
        ("import no_such_lab.losses", "'no_such_lab' is neither beside it nor installed here"),
        ("from segjax.models import NoNet", "NoNet.*another version of segjax made it"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=rf"mine\.py cannot be imported: .*{words}"):
            load_module(path)


def test_a_resumed_run_keeps_the_experiment_as_it_is_now(tmp_path):
    path, config = tmp_path / "mine.py", tiny.Config(workdir=tmp_path / "run")
    for text in ("first = 1\n", "second = 2\n"):
        path.write_text(text)
        open_run(config, path)
        assert (config.workdir / "experiment" / "mine.py").read_text() == text


def test_a_wheel_has_its_experiments_in_the_package(tmp_path, monkeypatch):
    assert experiments_folder() == EXPERIMENTS
    monkeypatch.setattr(experiment_files, "_PACKAGE", tmp_path / "site-packages" / "segjax")
    (tmp_path / "site-packages" / "experiments").mkdir(parents=True)  # another package's folder
    (tmp_path / "site-packages" / "segjax" / "experiments").mkdir(parents=True)
    assert experiments_folder() == tmp_path / "site-packages" / "segjax" / "experiments"
