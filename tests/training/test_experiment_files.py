"""Which files beside an experiment belong to it."""

from pathlib import Path

import pytest

from segjax.training.experiment_files import (
    LARGEST_NAMED,
    import_names,
    import_root,
    with_siblings,
)

pytestmark = pytest.mark.quick


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(file):
    return {path.as_posix() for path in with_siblings(file)}


def test_imports_are_followed_through_modules_and_packages_at_any_depth(tmp_path):
    write(
        tmp_path,
        {
            "mine.py": "import numpy, near\nfrom parts.heads import deep\nfrom plain import leaf\n",
            "near.py": "def late():\n    import parts.losses as losses\n",
            "parts/__init__.py": "from .base import Base\n",
            "parts/base.py": "from segjax import ops\n",
            "parts/losses.py": "from . import sums\n",
            "parts/sums.py": "",
            "parts/unused.py": "",
            "parts/heads/__init__.py": "",
            "parts/heads/deep.py": "from ..sums import total\nfrom ... import outside\n",
            "plain/leaf.py": "import mine\n",  # a folder without __init__.py, and a circle
            "plain/unused.py": "",
            "unused.py": "",
            "segjax/ops.py": "",  # a checkout of segjax beside it is no part of the experiment
        },
    )
    assert names(tmp_path / "mine.py") == {
        *("mine.py", "near.py", "plain/leaf.py"),
        *("parts/__init__.py", "parts/base.py", "parts/losses.py", "parts/sums.py"),
        *("parts/heads/__init__.py", "parts/heads/deep.py"),
    }
    assert import_names(tmp_path / "mine.py") == {"mine", "near", "parts", "plain"}
    assert import_root(tmp_path / "mine.py") == tmp_path


def test_a_module_of_a_package_keeps_its_place_in_it(tmp_path):
    write(
        tmp_path,
        {
            "lab/__init__.py": "",
            "lab/runs/__init__.py": "",
            "lab/runs/mine.py": "from ..parts import head\nimport lab.losses, beside, near\n",
            "lab/runs/near.py": "",
            "lab/parts.py": "",
            "lab/losses.py": "",
            "beside.py": "",
        },
    )
    file = tmp_path / "lab" / "runs" / "mine.py"
    package = {
        *("lab/__init__.py", "lab/runs/__init__.py", "lab/runs/mine.py", "lab/runs/near.py"),
        *("lab/parts.py", "lab/losses.py"),
    }
    assert import_root(file) == tmp_path
    assert names(file) == {*package, "beside.py"}
    # An installed package does not bring the others that are installed.
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for name in ("lab", "beside.py"):
        (tmp_path / name).rename(installed / name)
    assert names(installed / "lab" / "runs" / "mine.py") == package


def test_small_files_that_the_code_names_belong_to_it(tmp_path):
    write(
        tmp_path,
        {
            "mine.py": (
                "from pathlib import Path\n"
                "CLASSES = Path(__file__).with_name('classes.txt').read_text()\n"
                "BASE = load_module(Path(__file__).with_name('base.py'))\n"
                "NAMES = ('lists/val.txt', 'large.npz', 'lists', '../outside.txt', 'gone.txt')\n"
            ),
            "base.py": "import near\n",
            "near.py": "",
            "classes.txt": "",
            "lists/val.txt": "",
            "large.npz": "a" * (LARGEST_NAMED + 1),
        },
    )
    (tmp_path.parent / "outside.txt").write_text("")
    assert names(tmp_path / "mine.py") == {
        *("mine.py", "base.py", "near.py", "classes.txt", "lists/val.txt"),
    }


def test_a_file_beside_it_that_is_not_python_is_no_reason_to_fail(tmp_path):
    write(tmp_path, {"mine.py": "NOTES = 'broken.py'\n", "broken.py": "def (\n"})
    assert [*with_siblings(tmp_path / "mine.py")] == [Path("mine.py"), Path("broken.py")]
