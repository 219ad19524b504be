"""Which Python `make` takes, with Pythons that only answer as others would."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
ROOT = Path(__file__).resolve().parents[1]
MAKE_VENV = ".ci/make-venv"
FIND = [".ci/find-python", "14", "13", "12", "11"]
TOOLS = ("bash", "dirname", "make", "mkdir", "rm", "sh", "sort", "touch")
# A Python of another version: it runs `-c CODE`, "makes" an environment and notes what pip is told.
SCRIPT = """#!/bin/sh
exec {python} -I -S -c '
import pathlib, shutil, sys
script, *arguments = sys.argv[1:]
sys.version_info = (3, {minor}, 0)
sys.modules["ensurepip"] = {ensurepip}
if arguments[0] == "-c":
    exec(arguments[1])
elif arguments[1] == "venv":
    folder = pathlib.Path(arguments[2], "bin")
    folder.mkdir(parents=True)
    shutil.copy(script, folder / "python")
    sys.exit({ensurepip} is None)
elif arguments[1] == "pip":
    pathlib.Path(script).with_name("pip-was-told").write_text(" ".join(arguments))
' "$0" "$@"
"""


class Machine:
    """A PATH and a home that hold nothing but the programs that the scripts need."""

    def __init__(self, folder):
        self.home, self.path = folder / "home", folder / "bin"
        self.path.mkdir()
        for name in TOOLS:
            (self.path / name).symlink_to(shutil.which(name))

    def add(self, name, minor, *, venv=True):
        """Adds a Python 3.`minor`; None is a shim that fails."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        script = "#!/bin/sh\nexit 127\n"
        if minor is not None:
            ensurepip = "sys" if venv else "None"
            script = SCRIPT.format(python=sys.executable, minor=minor, ensurepip=ensurepip)
        path.write_text(script)
        path.chmod(0o755)
        return str(path)

    def add_to_pyenv(self, version):
        folder = self.home / ".pyenv" / "versions" / version / "bin"
        return self.add(folder / "python3", int(version.split(".")[1]))

    def run(self, *command):
        environment = {"PATH": str(self.path), "HOME": str(self.home)}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def machine(tmp_path):
    missing = [name for name in TOOLS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    return Machine(tmp_path)


def test_the_newest_that_runs_is_taken_and_a_failing_shim_is_not(machine):
    machine.add("python3.14", None)
    machine.add("python3.13", None)
    machine.add("python3.11", 11)
    machine.add("python3", 11)
    expected = machine.add_to_pyenv("3.13.0")
    assert machine.run(*FIND).stdout == expected + "\n"


def test_of_one_version_the_path_comes_first_then_pyenvs_newest_then_python3(machine):
    machine.add("python3", 13)
    assert machine.run(*FIND).stdout == "python3\n"
    machine.add_to_pyenv("3.13.9")
    machine.add_to_pyenv("3.13.11t")  # a free-threaded build, which few wheels are for
    expected = machine.add_to_pyenv("3.13.10")
    assert machine.run(*FIND).stdout == expected + "\n"
    machine.add("python3.13", 13)
    assert machine.run(*FIND).stdout == "python3.13\n"


@pytest.mark.parametrize("minor", [10, 15])
def test_outside_of_the_window_none_is_found(machine, minor):
    machine.add("python3", minor)
    done = machine.run(*FIND)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Found no Python that works; looked for: 3.14 3.13 3.12 3.11\n"


def test_one_without_venv_is_passed_over_with_the_name_of_debians_package(machine):
    machine.add("python3.13", 13, venv=False)
    machine.add("python3.12", 12)
    done = machine.run(*FIND)
    assert done.stdout == "python3.12\n"
    assert "apt install python3.13-venv" in done.stderr


def test_an_environment_that_exists_is_kept_unless_another_python_is_asked_for(machine, tmp_path):
    venv = str(tmp_path / "venv")
    machine.add("python3.12", 12)
    assert machine.run(MAKE_VENV, venv).stdout == "Using Python 3.12 (python3.12)\n"
    machine.add("python3.14", 14)
    for arguments in ([], ["python3.12"]):
        done = machine.run(MAKE_VENV, venv, *arguments)
        assert done.stdout == f"Using Python 3.12 of {venv}\n"
    done = machine.run(MAKE_VENV, venv, "python3.14")
    assert done.returncode == 1
    assert f"{venv} has Python 3.12, not Python 3.14: remove it" in done.stderr


def test_an_environment_whose_python_is_gone_is_refused(machine, tmp_path):
    (tmp_path / "venv").mkdir()
    done = machine.run(MAKE_VENV, str(tmp_path / "venv"))
    assert done.returncode == 1
    assert "venv has no Python that runs: remove it" in done.stderr


@pytest.mark.parametrize(
    ("minor", "message"),
    [
        (10, "segjax needs Python 3.11 or newer; chosen is 3.10."),
        (None, "chosen does not run."),
    ],
)
def test_a_python_that_is_too_old_or_fails_is_refused(machine, tmp_path, minor, message):
    machine.add("chosen", minor)
    done = machine.run(MAKE_VENV, str(tmp_path / "venv"), "chosen")
    assert (done.returncode, done.stderr) == (1, message + "\n")


def test_an_environment_that_fails_half_way_is_removed(machine, tmp_path):
    machine.add("chosen", 13, venv=False)
    assert machine.run(MAKE_VENV, str(tmp_path / "venv"), "chosen").returncode == 1
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("minor", "constraints"),
    [(11, "constraints-py311.txt"), (12, "constraints.txt"), (14, "constraints.txt")],
)
def test_make_installs_with_the_constraints_of_that_python(machine, tmp_path, minor, constraints):
    machine.add("chosen", minor)
    machine.add("python3.13", 13)
    venv = tmp_path / "venv"
    done = machine.run("make", "install", "PYTHON=chosen", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    told = (venv / "bin" / "pip-was-told").read_text().split()
    assert told[told.index("--constraint") + 1] == constraints
    assert (venv / "installed").exists()


def test_another_python_is_refused_though_everything_is_installed(machine, tmp_path):
    for name in ("python3.12", "python3.13"):
        machine.add(name, int(name[-2:]))
    flags = [f"VENV={tmp_path / 'venv'}"]
    assert machine.run("make", "install", "PYTHON=python3.12", *flags).returncode == 0
    assert machine.run("make", "install", *flags).returncode == 0
    done = machine.run("make", "install", "PYTHON=python3.13", *flags)
    assert done.returncode != 0
    assert "has Python 3.12, not Python 3.13" in done.stderr


def test_without_a_primary_python_the_checks_fail_rather_than_test_the_oldest_alone(machine):
    machine.add("python3.11", 11)
    done = machine.run(".ci/run")
    assert done.returncode == 1
    assert done.stderr == "Found no Python that works; looked for: 3.13 3.14 3.12\n"
