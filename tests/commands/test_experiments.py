"""Experiments are listed with the data they need, and copied whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from segjax.cli import main
from segjax.commands import experiments
from segjax.data.sources.catalog import dataset_names

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("benchmarks", "reproduce.py")  # in the folder, and no experiments
FILES = sorted(
    path
    for path in (ROOT / "experiments").rglob("*.py")
    if not {*OTHERS} & {*path.relative_to(ROOT / "experiments").parts}
)
NAMES = [file.relative_to(ROOT / "experiments").with_suffix("").as_posix() for file in FILES]
MINE = '''"""An experiment of mine.

Data      segjax data prepare
          drive --source DIR
Command   python experiments/family/mine.py --workdir runs/mine
"""
import numpy
import shared
from shared import Config

build = shared.build
'''
SHARED = "def build(config):\n    from deeper import task\nclass Config: ...\n"
DEEPER = "import mine\n"


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A folder of experiments of which one imports two others, in a circle."""
    folder = tmp_path / "experiments"
    (folder / "family").mkdir(parents=True)
    (folder / "family" / "mine.py").write_text(MINE)
    (folder / "family" / "shared.py").write_text(SHARED)
    (folder / "family" / "deeper.py").write_text(DEEPER)
    (folder / "family" / "alone.py").write_text("")
    monkeypatch.setattr(experiments, "experiments_folder", lambda: folder)
    return folder / "family"


def copy(*arguments):
    main(["experiments", "copy", *map(str, arguments)])


def fails(capsys, *arguments):
    """Copies, which should end with status 2 and one line; returns the line."""
    with pytest.raises(SystemExit) as stop:
        copy(*arguments)
    message = capsys.readouterr().err
    assert (stop.value.code, message.count("\n"), message[:7]) == (2, 1, "error: ")
    return message


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_every_experiment_is_listed_with_its_data_and_what_it_trains(capsys):
    main(["experiments", "list"])
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted(NAMES)
    assert lines[0].split()[:2] == ["quickstart", "generated"]
    row = next(line for line in lines if line.startswith("unet/u373"))
    assert row.split()[1] == "cell_tracking/phc_c2dh_u373"
    assert row.endswith("U-Net on PhC-C2DH-U373 of the Cell Tracking Challenge: glioblastoma cells "
                        "in phase contrast.")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_of_an_experiment_says_what_data_it_needs(name):
    experiment = experiments.experiment_files()[name]
    assert experiment.needs in {"generated", "your files", *dataset_names()}
    assert (experiment.needs == "generated") == ("made by code" in experiment.data)


def test_listing_and_copying_import_no_jax(tmp_path):
    program = (
        "import sys; from segjax.cli import main\n"
        "main(['experiments', 'list'])\n"
        f"main(['experiments', 'copy', 'quickstart', {str(tmp_path)!r}])\n"
        "print([name for name in ('jax', 'flax', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_file_and_the_command_names_the_copy(name, tmp_path, capsys):
    copy(name, tmp_path / "new" / "folder")
    source = ROOT / "experiments" / f"{name}.py"
    target = tmp_path / "new" / "folder" / source.name
    assert target.read_bytes() == source.read_bytes()
    assert f"command  python {target} --workdir runs/" in capsys.readouterr().out


def test_a_copy_brings_what_the_file_imports_from_its_folder(family, tmp_path, capsys):
    copy("family/mine", tmp_path / "to")
    assert contents(tmp_path / "to") == {"mine.py": MINE, "shared.py": SHARED, "deeper.py": DEEPER}
    shown = capsys.readouterr().out
    assert "data     segjax data prepare drive --source DIR\n" in shown
    assert f"command  python {tmp_path / 'to' / 'mine.py'} --workdir runs/mine\n" in shown


def test_only_what_trains_is_an_experiment(family):
    # `deeper` and `alone` have neither Config nor build.
    assert list(experiments.experiment_files()) == ["family/mine", "family/shared"]


def test_a_file_that_was_edited_is_not_overwritten_unless_asked_to(family, tmp_path, capsys):
    folder = tmp_path / "to"
    folder.mkdir()
    (folder / "shared.py").write_text("edited")
    message = fails(capsys, "family/mine", folder)
    assert str(folder / "shared.py") in message
    assert "--overwrite" in message
    assert contents(folder) == {"shared.py": "edited"}
    copy("family/mine", folder, "--overwrite")
    assert contents(folder)["shared.py"] == SHARED
    capsys.readouterr()
    copy("family/mine", folder)  # nothing to replace
    assert capsys.readouterr().out.count("(unchanged)") == 3


def test_a_copy_that_fails_leaves_nothing(family, tmp_path, capsys, monkeypatch):
    whole = Path.write_bytes

    def full_disk(path, content):
        whole(path, content[:3])
        if path.name.startswith("deeper"):
            raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert "no space left" in fails(capsys, "family/mine", tmp_path / "to")
    assert contents(tmp_path / "to") == {}


def test_a_folder_that_cannot_be_one_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "file is a file" in fails(capsys, "quickstart", tmp_path / "file")
    (tmp_path / "to" / "quickstart.py").mkdir(parents=True)
    message = fails(capsys, "quickstart", tmp_path / "to", "--overwrite")
    assert str(tmp_path / "to" / "quickstart.py") in message
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("isbi2012", "unet/isbi2012"),
        ("unet/isbi", "unet/isbi2012"),
        ("quikstart", "quickstart"),
        ("experiments/deeplab/v3_voc2012.py", "deeplab/v3_voc2012"),
    ],
)
def test_an_unknown_name_gives_the_nearest(asked, nearest, tmp_path, capsys):
    assert f"did you mean '{nearest}'?" in fails(capsys, asked, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    assert "did you mean" not in fails(capsys, "zzz", tmp_path / "to")
