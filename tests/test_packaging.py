"""What segjax is installed from: requirements, constraints, the Pythons it names, and its wheel."""

import ast
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import segjax

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = ("constraints.txt", "constraints-py311.txt")
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# The benchmark of the CRF takes pydensecrf from an interpreter that the user names. Scripts that
# record references run in environments of their own.
ELSEWHERE = {"lightning", "mmdet", "mmengine", "mmseg", "pydensecrf", "tensorflow"}
LINK = re.compile(r"\[[^]]*\]\(([^)]*)\)")


def names_of(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def pinned(file):
    """The versions of a file of constraints, by the packages' names."""
    lines = (ROOT / file).read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_every_requirement_is_pinned_to_a_version_that_satisfies_it(file):
    versions = pinned(file)
    every = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    every += [Requirement(text) for text in build]
    missing = {each.name for each in every if canonicalize_name(each.name) not in versions}
    assert missing == set()
    assert [
        str(each) for each in every if versions[canonicalize_name(each.name)] not in each.specifier
    ] == []


def test_the_window_of_pythons_is_the_same_wherever_it_is_named():
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    prefix = "Programming Language :: Python :: "
    assert [
        text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)
    ] == PYTHONS
    searched = " ".join(version.removeprefix("3.") for version in reversed(PYTHONS))
    assert f'find-python" {searched})' in (ROOT / ".ci" / "make-venv").read_text()
    assert f"from {PYTHONS[-1]} down to {PYTHONS[0]}" in (ROOT / "Makefile").read_text()
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in (ROOT / "README.md").read_text()


def test_the_window_of_jax_is_from_its_requirement_to_the_newest_constraint():
    newest, oldest = (pinned(file)["jax"] for file in CONSTRAINTS)
    assert f"jax>={oldest}" in PROJECT["dependencies"]
    assert f"jax {oldest} to {newest}" in (ROOT / "README.md").read_text()


def imported(folder):
    """The top-level names that a folder's files import and that Python does not bring."""
    for path in folder.rglob("*.py"):
        siblings = {file.stem for file in path.parent.glob("*.py")}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            yield from {name.partition(".")[0] for name in names} - siblings


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("segjax", ["tiff", "hub", "wandb", "mlflow", "trackio"]),
        ("experiments", ["benchmarks", "augmentation"]),
        ("tests", ["test", "tensorflow", "wandb", "trackio", "onnx"]),
    ],
)
def test_every_import_is_a_declared_requirement(folder, extras):
    declared = names_of(PROJECT["dependencies"] + [r for e in extras for r in EXTRAS[e]])
    owners = importlib.metadata.packages_distributions()
    own = {"segjax", "experiments", "tests"}
    foreign = set(imported(ROOT / folder)) - sys.stdlib_module_names - own - ELSEWHERE
    assert {name for name in foreign if not names_of(owners.get(name, [name])) & declared} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("build_wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def build(kind, source, folder):
    """Calls hatchling in a process of its own, as pip does, without the network."""
    code = f"import sys; from hatchling import build; print(build.{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(folder / done.stdout.split()[-1])


def metadata(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return BytesParser().parse(io.BytesIO(wheel.read(name)))


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "segjax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "segjax/py.typed" in files
    for builder in (ROOT / "segjax" / "data" / "datasets").glob("*/*_dataset_builder.py"):
        for name in ("README.md", "CITATIONS.bib", "TAGS.txt"):
            assert str((builder.parent / name).relative_to(ROOT)) in files
    assert files - set(wheel.namelist()) == set()


def test_the_wheel_has_the_packages_version(wheel):
    assert metadata(wheel)["Version"] == segjax.__version__


def test_the_index_pages_text_is_the_readme_without_links_to_files(wheel):
    readme = (ROOT / "README.md").read_text()
    page = metadata(wheel).get_payload()
    assert set(LINK.findall(page)) == {
        link for link in LINK.findall(readme) if link.startswith("https://")
    }
    assert re.findall("^##.*", page, re.MULTILINE) == re.findall("^##.*", readme, re.MULTILINE)


def test_the_readmes_links_to_files_are_of_files_that_exist():
    links = LINK.findall((ROOT / "README.md").read_text())
    relative = [link.partition("#")[0] for link in links if not link.startswith("https:")]
    assert relative
    assert [link for link in relative if not (ROOT / link).exists()] == []


def test_the_readme_leads_to_every_file_that_extends_segjax():
    links = LINK.findall((ROOT / "README.md").read_text())
    files = sorted(path.name for path in (ROOT / "experiments/extending").glob("*.py"))
    assert files
    assert [name for name in files if f"experiments/extending/{name}" not in links] == []


def test_beside_an_editable_checkout_of_its_name_segjax_is_found(tmp_path):
    """The checkout is a folder without __init__.py, which Python could take for a namespace."""
    checkout, site = tmp_path / "segjax", tmp_path / "site"
    (checkout / "segjax").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "segjax/__init__.py"):
        shutil.copy(ROOT / name, checkout / name)
    site.mkdir()
    build("build_editable", checkout, tmp_path).extractall(site)
    code = "import site, sys; site.addsitedir(sys.argv[1]); import segjax; print(segjax.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(site)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == (str(checkout / "segjax" / "__init__.py"), "")
