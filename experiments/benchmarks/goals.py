"""Prints the goals against PyTorch on CPU, what was measured, and which are met.

    python experiments/benchmarks/goals.py [--results experiments/benchmarks/results]

It reads the JSON files that the commands of RESULTS.md wrote. The rival is the faster of torch's
two memory layouts, and for memory the smaller one.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Goal:
    """A limit on a measure of some cases.

    Attributes:
      what: the measure, in words.
      file: the name of the JSON file, without its suffix.
      cases: a regular expression for the names of the cases.
      measure: the measure of a case.
      most: the limit.
    """

    what: str
    file: str
    cases: str
    measure: Callable[[dict], float]
    most: float


def of_rival(case: dict, key: str) -> float:
    return min(side[key] for name, side in case["sides"].items() if name.startswith("torch"))


def time(case: dict) -> float:
    """segjax's time, or that of its second start, over the faster torch's."""
    sides = case["sides"]
    ours = sides.get("segjax") or sides["segjax, second start"]
    return ours["median"] / of_rival(case, "median")


def memory(case: dict) -> float:
    """The process's peak memory over torch's smaller one."""
    return case["sides"]["segjax"]["peak_bytes"] / of_rival(case, "peak_bytes")


def cold_seconds(case: dict) -> float:
    return case["sides"]["segjax, cold"]["median"]


def time_of_a_core(case: dict) -> float:
    """Processor time for an image over torch's."""
    ours, torch = (
        case["rates"][side]["images per second of a core"] for side in ("segjax", "torch")
    )
    return torch / ours


GOALS = (
    Goal("time", "models", "(unet|deeplab).*", time, 1.0),
    Goal("time", "models", "mask_rcnn.*", time, 0.6),
    Goal("peak memory", "models", ".*train step.*", memory, 1.2),
    Goal("second start to the first step", "startup", ".*first step", time, 1.2),
    Goal("cold start in seconds", "startup", "mask_rcnn.*", cold_seconds, 20),
    Goal("time of the command", "whole_commands_predict", "predict.*", time, 1.0),
    Goal("time from start to last step", "whole_commands_train", "train.*", time, 1.0),
    Goal("time", "evaluation", ".*", time, 1.0),
    Goal("processor time an image", "input_pipeline", ".*", time_of_a_core, 1.0),
)


def main(results: Path = HERE / "results"):
    """Prints a Markdown table.

    Args:
      results: folder with the JSON files.
    """
    print("| case | measure | segjax / better torch | goal | |\n|---|---|---|---|---|")
    met = total = 0
    for goal in GOALS:
        path = results / f"{goal.file}.json"
        cases = json.loads(path.read_text())["cases"] if path.exists() else []
        found = [case for case in cases if re.fullmatch(goal.cases, case["name"])]
        if not found:
            print(f"| {goal.file} | {goal.what} | not yet measured | ≤ {goal.most:g} | |")
        for case in found:
            value = goal.measure(case)
            total, met = total + 1, met + (value <= goal.most)
            verdict = "met" if value <= goal.most else "**missed**"
            print(f"| {case['name']} | {goal.what} | {value:.2f} | ≤ {goal.most:g} | {verdict} |")
    print(f"\n{met} of {total} measured goals are met.")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
