"""Experiment files on disk: where segjax keeps its own, and which files make up an experiment."""

import ast
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def experiments_folder() -> Path:
    """Returns the folder of segjax's own experiments.

    A wheel has them inside the package; a checkout has them in a folder beside it.
    """
    installed = _PACKAGE / "experiments"
    return installed if installed.is_dir() else _PACKAGE.parent / "experiments"


def with_siblings(file: Path) -> list[Path]:
    """Returns an experiment file and the files of its folder that it imports, also indirectly."""
    found, waiting = [], [Path(file)]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found.append(path)
        siblings = (path.with_name(f"{name}.py") for name in _imported_modules(path))
        waiting += [sibling for sibling in siblings if sibling.is_file()]
    return found


def _imported_modules(path: Path) -> list[str]:
    """Returns the top-level names of the modules that a file imports, in the file's order."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return [name.partition(".")[0] for name in names]
