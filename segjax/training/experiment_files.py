"""Experiment files on disk: where segjax keeps its own, and which files make up an experiment."""

import ast
from pathlib import Path

# Larger files are data, which a run does not copy.
LARGEST_NAMED = 1_000_000  # bytes
LONGEST_NAME = 60  # characters, which any file system takes
INSTALLED = ("site-packages", "dist-packages")

_PACKAGE = Path(__file__).resolve().parents[1]


def experiments_folder() -> Path:
    """Returns the folder of segjax's own experiments.

    A wheel has them inside the package; a checkout has them in a folder beside it.
    """
    installed = _PACKAGE / "experiments"
    return installed if installed.is_dir() else _PACKAGE.parent / "experiments"


def with_siblings(file: Path) -> dict[Path, Path]:
    """Finds an experiment file and the files beside it that it uses, also indirectly.

    They are the modules and packages that it imports from its folder (or from the folder of the
    package that it belongs to), and small files beside it that its code names in full, such as
    "classes.txt". A name that the code composes at run time is not found.

    Returns:
      The files, the experiment's first, by their path relative to `import_root(file)`.
    """
    file = Path(file).resolve()
    root = import_root(file)
    places = import_places(file)
    # What is installed stays a requirement, except for the experiment's own package.
    own = root / file.relative_to(root).parts[0] if root.name in INSTALLED else root
    found, waiting = {}, [file]
    while waiting:
        path = waiting.pop(0)
        relative = path.relative_to(root)
        if relative in found:
            continue
        found[relative] = path
        if path.suffix == ".py":
            waiting += _packages_of(path, root)
            waiting += [near for near in _neighbours(path, places) if near.is_relative_to(own)]
    return found


def import_root(file: Path) -> Path:
    """Returns the folder that an experiment imports from.

    It is the file's own folder or, for a module of a package, the folder that holds the package.
    """
    folder = Path(file).resolve().parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def import_places(file: Path) -> list[Path]:
    """Returns the folders where an experiment's imports look first, as a file and as a module."""
    return [*dict.fromkeys([Path(file).resolve().parent, import_root(file)])]


def import_names(file: Path) -> set[str]:
    """Returns the names, without dots, under which an experiment may import files beside it."""
    file = Path(file).resolve()
    return {
        path.relative_to(place).parts[0].removesuffix(".py")
        for path in with_siblings(file).values()
        for place in import_places(file)
        if path.suffix == ".py" and path.is_relative_to(place)
    }


def _packages_of(path: Path, root: Path) -> list[Path]:
    """Returns the `__init__.py` of each package that a module is in."""
    folders = path.parents[: len(path.relative_to(root).parts) - 1]
    return [init for folder in folders if (init := folder / "__init__.py").is_file()]


def _neighbours(path: Path, places: list[Path]) -> list[Path]:
    """Returns the files that a module imports from its folder or from `places`, or names."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []  # whatever imports it will say so
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found += _module_files(alias.name, places)
        elif isinstance(node, ast.ImportFrom):
            start = [path.parents[node.level - 1]] if node.level else places
            for alias in node.names:  # a submodule or an attribute
                module = f"{node.module}.{alias.name}" if node.module else alias.name
                found += _module_files(module, start)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += _named_file(path.parent, node.value)
    return found


def _module_files(module: str, places: list[Path]) -> list[Path]:
    """Returns the files of a dotted module, packages first, in the first place that has any."""
    if module.partition(".")[0] == "segjax":
        return []
    for place in places:
        files = _files_in(place, module.split("."))
        if files:
            return files
    return []


def _files_in(folder: Path, parts: list[str]) -> list[Path]:
    found = []
    for part in parts:
        module, folder = folder / f"{part}.py", folder / part
        if (folder / "__init__.py").is_file():
            found.append(folder / "__init__.py")
        elif module.is_file():
            return [*found, module]
        elif not folder.is_dir():
            break
    return found


def _named_file(folder: Path, name: str) -> list[Path]:
    """Returns the file of a folder that a text in the code names, unless it is large."""
    relative = Path(name)
    if "\n" in name or "\0" in name or len(name) > LONGEST_NAME or not relative.suffix:
        return []
    if relative.is_absolute() or ".." in relative.parts:
        return []
    path = folder / relative
    return [path] if path.is_file() and path.stat().st_size <= LARGEST_NAMED else []
