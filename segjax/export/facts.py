"""`model.json`: the facts about an exported model that its file alone does not tell."""

import importlib.metadata
from pathlib import Path
from typing import Any

from segjax.export.model import ImageFunction

SHAPE = ("batch", "height", "width", "channels")
COLOURS = {1: "grey", 3: "RGB"}


def make_facts(
    function: ImageFunction,
    *,
    form: str,
    platforms: tuple[str, ...],
    model: dict[str, Any],
    command: str,
    environment: dict[str, Any],
    batch: int | None = None,
) -> dict[str, Any]:
    """Returns the facts as JSON values.

    Args:
      function: what was exported.
      form: the format of the file, "stablehlo" or "onnx".
      platforms: where the file runs.
      model: which model it is: its run or name, and the commit of the training.
      command: the command that made the file.
      environment: the versions and the commit of the process that made it.
      batch: the number of images in a batch; None for any.
    """
    height, width = _sides(function)
    versions = environment["versions"] | {"python": environment["python"]}
    return {
        "format": form,
        "model": model,
        "inputs": {
            "images": {
                "shape": ["any" if batch is None else batch, height, width, function.channels],
                "axes": list(SHAPE),
                "dtype": function.dtype,
                "pixels": COLOURS.get(function.channels, f"{function.channels} bands")
                + ", as they are read from the file; the function normalises them",
            }
        },
        "outputs": dict(function.outputs),
        "classes": list(function.classes),
        "notes": list(function.notes),
        "platforms": list(platforms),
        "versions": versions,
        "commit": environment["commit"],
        "command": command,
        "again": f"made by jax {versions['jax']}; export again with: {command}",
    }


def _sides(function: ImageFunction) -> tuple[int | str, int | str]:
    if function.size is not None:
        return function.size
    if function.most is None:
        return "any", "any"
    height, width = (f"at most {most}" for most in function.most)
    return height, width


def versions_of(*packages: str) -> dict[str, str]:
    """Returns the versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in packages}


def facts_path(output: Path) -> Path:
    """Returns the file of the facts about an exported file: model.json beside model.stablehlo."""
    return output.with_suffix(".json")
