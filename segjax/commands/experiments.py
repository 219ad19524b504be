"""`segjax experiments`: lists the experiment files and copies them out of the package."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.messages.hints import nearest
from segjax.training.experiment_files import experiments_folder, with_siblings

Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment file, as its docstring describes it.

    Attributes:
      name: family and file, such as "unet/isbi2012".
      path: the file.
      summary: the first line of the docstring.
      data: the section "Data" of the docstring: how to get the training data.
      command: the section "Command" of the docstring, with the file's path in a checkout.
    """

    name: str
    path: Path
    summary: str
    data: str
    command: str

    @property
    def needs(self) -> str:
        """The data set to prepare, "your files", or "generated" for data that the file makes."""
        if self.data.startswith("segjax data prepare "):
            return self.data.split()[3]
        return "your files" if self.data.startswith("--") else "generated"


def list_command() -> None:
    """List the experiments: name, required data, and what each one trains."""
    rows = [(e.name, e.needs, e.summary) for e in experiment_files().values()]
    rows.insert(0, ("NAME", "DATA", "EXPERIMENT"))
    first, second, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for name, needs, summary in rows:
        print(f"{name:{first}}  {needs:{second}}  {summary}")
    print(
        "\nTo copy one: segjax experiments copy NAME DIR\n"
        "To prepare its data set, once: segjax data prepare DATA --source DIR\n"
        "Generated data needs no preparation."
    )


def copy_command(name: Name, folder: Folder, /, *, overwrite: bool = False) -> None:
    """Copy an experiment file, and the files beside it that it uses, to run and edit it.

    Args:
      name: Name of the experiment, as in `segjax experiments list`.
      folder: Folder to copy to; created if it does not exist.
      overwrite: Replace existing files that differ.
    """
    experiment = _find(name)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder to copy to")
    with user_errors():
        contents = {
            folder / name: source.read_bytes()
            for name, source in with_siblings(experiment.path).items()
        }
        new = {
            target: content
            for target, content in contents.items()
            if not (target.exists() and target.read_bytes() == content)
        }
        differing = [str(target) for target in new if target.exists()]
        if differing and not overwrite:
            raise UserError(
                f"these files exist with other contents: {', '.join(differing)}; choose another "
                "folder, or replace them with --overwrite"
            )
        for target in new:
            target.parent.mkdir(parents=True, exist_ok=True)
        _write_all(new)
    for target in contents:
        print(f"{target}{'' if target in new else ' (unchanged)'}")
    in_checkout = f"experiments/{experiment.name}.py"
    command = experiment.command.replace(in_checkout, str(folder / experiment.path.name))
    print(f"\ndata     {experiment.data}\ncommand  {command}")


def experiment_files() -> dict[str, ExperimentFile]:
    """Returns segjax's own experiments by name: the quickstart, then the families."""
    folder = experiments_folder()
    found = {}
    for path in sorted(folder.rglob("*.py"), key=lambda path: (len(path.parts), path)):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if {"Config", "build"} <= _names_bound_by(module):  # as `load_module` expects
            name = path.relative_to(folder).with_suffix("").as_posix()
            summary, sections = read_docstring(ast.get_docstring(module) or "")
            found[name] = ExperimentFile(
                name, path, summary, sections.get("Data", ""), sections.get("Command", "")
            )
    return found


def _find(name: str) -> ExperimentFile:
    experiments = experiment_files()
    if name not in experiments:
        full_names = {full.rpartition("/")[2]: full for full in experiments}
        found = nearest(name, [*experiments, *full_names])
        hint = f"did you mean {full_names.get(found, found)!r}? " if found else ""
        raise UserError(f"no experiment {name!r}; {hint}segjax experiments list shows all of them")
    return experiments[name]


def _names_bound_by(module: ast.Module) -> set[str]:
    """The names that a module defines, assigns or imports at its top level."""
    names = set()
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Returns the first line, and the text of each section.

    A section starts with its name; its text starts in the eleventh column of each line.
    """
    summary, *lines = text.splitlines() or [""]
    sections: dict[str, list[str]] = {}
    for line in lines:
        heading, content = line[:10].strip(), line[10:].strip()
        if heading.isalpha() and line[9:10] == " ":
            sections[heading] = [content]
        elif sections and not heading and content:
            list(sections.values())[-1].append(content)
    return summary, {heading: " ".join(parts) for heading, parts in sections.items()}


def _write_all(contents: dict[Path, bytes]) -> None:
    """Writes all files or none: writes each under a temporary name before renaming the first."""
    partial = {target: target.with_name(f"{target.name}.partial") for target in contents}
    try:
        for target, content in contents.items():
            partial[target].write_bytes(content)
        for target, path in partial.items():
            path.replace(target)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
