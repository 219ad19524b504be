"""Who may know whom (the rooms of the package), and what stays outside of it altogether."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick
PACKAGE = Path(__file__).resolve().parents[1] / "segjax"
# What each room may import of the package besides itself: rooms, or single modules of them.
MAY_KNOW = {
    "files": [],
    "labels": [],
    "messages": [],
    "ops": [],
    "losses": ["labels", "ops"],
    "models": ["ops"],
    "coco": [],
    "pictures": ["coco", "files", "labels"],
    "inference": ["coco"],
    "weights": ["data.datasets.ade20k.class_names", "files", "messages"],
    "evaluation": ["coco", "inference", "labels"],
    "data": ["coco", "labels", "messages", "pictures"],  # the contact sheet
    "tasks": ["labels", "models", "losses", "ops", "inference", "evaluation", "pictures"],
    # the format of metrics.jsonl, and which of its metrics are errors
    "report": ["files", "training.logging", "training.ranking"],
    # of tasks the protocol alone
    "training": [
        *("data", "files", "messages", "pictures"),
        *(
            "ops.batch_statistics",
            "ops.convolution",
            "ops.devices",
            "ops.initializers",
            "tasks.protocol",
        ),
    ],
    "pretrained": [
        *("models", "tasks", "evaluation", "inference", "coco.classes"),
        *("data.augmentation", "data.datasets.ade20k.class_names", "data.images"),
        *("data.voc_classes", "messages", "weights"),
        # published folders: how their images are read, and the version that reads them
        *("data.orientation", "training.compiler", "training.precision", "__version__"),
    ],
    "recipes": [
        *("coco", "data", "evaluation", "inference", "labels", "losses", "messages"),
        *("models", "ops", "pretrained", "tasks", "training"),
    ],
    "trained": [
        *("data.checks.examples", "data.image_windows", "data.loading", "data.orientation"),
        *("inference.views", "messages", "pretrained", "training"),
    ],
    # trained models that leave: published folders, and the forms in JAX of what other rooms
    # compute in NumPy
    "export": [
        *("data.augmentation", "data.orientation", "evaluation", "files", "inference"),
        *("ops.linear", "ops.platforms", "pretrained", "report.run", "tasks", "trained"),
        *("training", "__version__"),
    ],
    # published numbers and what runs reached
    "ledger": [
        *("files", "messages", "report", "training.configuration", "training.evaluate"),
        *("training.experiment", "training.experiment_files", "training.logging"),
        "training.run_directory",
    ],
    "commands": [
        *(
            "coco",
            "data",
            "evaluation",
            "export",
            "files",
            "inference",
            "labels",
            "messages",
            "ops",
            "pictures",
        ),
        *(
            "export",
            "ledger",
            "pretrained",
            "recipes",
            "report",
            "tasks",
            "trained",
            "training",
            "weights",
        ),
    ],
    "cli": ["commands", "messages"],
}
# Data is read in worker processes, and pictures and scores are made of NumPy arrays.
WITHOUT_JAX = (
    *("coco", "data", "evaluation", "files", "inference", "labels", "messages", "pictures"),
    *("report", "weights"),
)
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
NOWHERE = {"tensorflow", "torch", "keras", "matplotlib"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    """The folder or file of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The full names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name, module):
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_knows_only_those_below_it(room):
    files = [path for path in FILES if room_of(path) == room]
    assert files
    allowed = [f"segjax.{known}" for known in (room, *MAY_KNOW[room])]
    strangers = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in files
        for name in imported(path)
        if is_within(name, "segjax") and not any(is_within(name, known) for known in allowed)
    ]
    assert strangers == []


def test_every_file_belongs_to_a_room_with_a_place():
    assert {room_of(path) for path in FILES} == {*MAY_KNOW, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_nothing_that_its_room_does_without(path):
    forbidden = NOWHERE | (JAX if room_of(path) in WITHOUT_JAX else set())
    if room_of(path) != "data":
        forbidden = forbidden | {"tensorflow_datasets", "grain"}
    assert {name.partition(".")[0] for name in imported(path)} & forbidden == set()


def test_no_file_is_long_and_none_is_a_drawer():
    assert [path.name for path in FILES if len(path.read_text().splitlines()) > 350] == []
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert [path for path in FILES if drawers & set(path.with_suffix("").parts)] == []


def test_neither_tensorflow_nor_jax_comes_in_by_the_back_door(tmp_path):
    """A TensorFlow that could be imported stands by: optional imports would find it."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("")
    code = """
import importlib, sys
sys.path.insert(0, sys.argv[1])

def found_after(*names):
    for name in names:
        importlib.import_module(f"segjax.{name}")
    return {"jax", "tensorflow", "torch"} & set(sys.modules)

assert found_after("evaluation.metrics", "inference.tiling", "pictures.overlays", "cli") == set()
assert found_after("inference.coverings", "data.augmentation.photometric") == set()
assert found_after("data.augmentation.weight_map", "data.loading.pack_objects") == set()
assert found_after("evaluation.instance_evaluator", "pictures.instances") == set()
assert found_after("data.sources.semantic", "data.prepare") == set()
# tensorboardX imports a PyTorch if there is one, whoever uses it.
found = found_after("data.loading.loader", "tasks", "training.loop", "recipes.unet", "pretrained")
assert found - {"torch"} == {"jax"}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
