"""What a type checker and an editor see of an installed segjax."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segjax

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "fixtures" / "user_script.py"


def check(script, folder, *, python=sys.executable):
    """Runs pyright on a script elsewhere; returns (what it complains about, types it revealed)."""
    copied = shutil.copy(script, folder)
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", python, "--outputjson", copied],
        cwd=folder,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        pytest.skip(f"pyright does not run here: {(done.stdout + done.stderr).strip()[-300:]}")
    messages = {"information": [], "other": []}
    for each in found:
        kind = "information" if each["severity"] == "information" else "other"
        line = each["range"]["start"]["line"] + 1
        messages[kind].append(f"line {line}: {each['message']}")
    return messages["other"], messages["information"]


@pytest.fixture(scope="module")
def installed():
    """Skips without pyright, or where segjax is not installed from this checkout."""
    pytest.importorskip("pyright")
    try:
        distribution = importlib.metadata.distribution("segjax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("segjax is not installed here; pip install -e '.[test]'")
    paths = [file for file in distribution.files or [] if file.suffix == ".pth"]
    if str(ROOT) not in [path.read_text().strip() for path in paths]:
        pytest.skip("the segjax that is installed here is not this checkout by a path")


def test_a_script_with_the_public_names_passes_pyright(installed, tmp_path):
    assert check(SCRIPT, tmp_path)[0] == []


def test_pyright_would_find_a_mistake_and_knows_what_is_returned(installed, tmp_path):
    script = tmp_path / "source.py"
    script.write_text(
        "import segjax\n"
        "import jax.numpy as jnp\n"
        "x = jnp.zeros((1, 4))\n"
        "model = segjax.models.UNet(num_classes=2)\n"
        "reveal_type(model.apply({}, x)['logits'])\n"
        "reveal_type(model.apply({}, x, mutable=['batch_stats']))\n"
        "reveal_type(segjax.ops.box_iou(x, x))\n"
        "reveal_type(segjax.evaluation.ConfusionMatrix(2).result())\n"
        "segjax.models.UNet(num_clases=2)\n"
        "segjax.evaluation.evaluate_coco('a.json', [], 'boxes')\n"
    )
    (tmp_path / "elsewhere").mkdir()
    mistakes, types = check(script, tmp_path / "elsewhere")
    assert [mistake.split(":")[0] for mistake in mistakes] == ["line 9", "line 9", "line 10"]
    assert [shown.rpartition("is ")[2] for shown in types] == [
        '"Array"',
        '"tuple[dict[str, Array], dict[str, Any]]"',
        '"Array"',
        '"dict[str, Any]"',
    ]


PRIVATE = ("commands", "files", "labels", "ledger", "messages", "report", "trained")


def test_the_package_lists_its_rooms_and_functions_and_each_can_be_had():
    rooms = {path.parent.name for path in (ROOT / "segjax").glob("*/__init__.py")}
    functions = {"load_run", "predict_all"}
    assert {*segjax.__all__} == rooms - {*PRIVATE} | functions
    assert {*dir(segjax)} == {*segjax.__all__, "__version__"}
    assert {*dir(segjax.models)} == {*segjax.models.__all__}
    for name in segjax.__all__:
        found = getattr(segjax, name)
        if name in functions:
            assert (found.__module__, found.__name__) == ("segjax.trained.run", name)
        else:
            assert found.__name__ == f"segjax.{name}"
    with pytest.raises(AttributeError, match="no attribute 'model'; it has coco, data"):
        segjax.model  # noqa: B018
