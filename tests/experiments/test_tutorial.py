"""The tutorial runs from its first cell to its last, as Jupyter would run it."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from segjax.cli import main
from segjax.commands.launch import run
from segjax.training.experiment import load_module

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def run_program(command: str) -> str:
    """Runs `segjax …` or `python EXPERIMENT …` in this process; returns what it prints."""
    program, *arguments = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if program == "segjax":
            with contextlib.suppress(SystemExit):  # a notebook goes on after a command that fails
                main(arguments)
        else:
            module = load_module(EXPERIMENTS / arguments[0])
            with jax.numpy_dtype_promotion("standard"):  # Optax's AdamW itself mixes dtypes
                run(module.Config, module.build, module.__file__, arguments[1:])
    return printed.getvalue()


def run_cell(source: str, names: dict, outputs: list[str]) -> None:
    """Runs a cell; lines that begin with "!" are commands, with names in braces."""
    block = []
    for line in [*source.splitlines(), "!"]:
        if not line.startswith("!"):
            block.append(line)
            continue
        exec("\n".join(block), names)
        block = []
        if command := line[1:].format(**names):
            outputs.append(run_program(command))


# Jupyter shows images that nobody closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_tutorial_runs(tmp_path):
    notebook = json.loads((EXPERIMENTS / "tutorial.ipynb").read_text())
    names, outputs = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"]).replace('Path("tutorial")', f'Path("{tmp_path}")')
            short = source.replace("num-steps 150", "num-steps 20").replace(
                "features 16", "features 4"
            )
            run_cell(short, names, outputs)
    proposal, checked, trained, predicted, measured = outputs
    assert "--values '#000000'" in proposal
    assert "problems: none" in checked
    assert "report.html" in trained.splitlines()[-2]
    assert "labels" in predicted
    assert re.search(r"mean_iou +0\.\d+", measured)
    assert names["prediction"]["labels"].shape == (120, 160)
    written = np.array(Image.open(tmp_path / "out" / "labels" / "shape1.png"))
    np.testing.assert_array_equal(names["prediction"]["labels"], written)


def test_the_tutorial_shows_what_it_printed_and_drew():
    """The outputs in the file are those of a whole run, in order and without an error."""
    notebook = json.loads((EXPERIMENTS / "tutorial.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in kinds if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in kinds) == 3
