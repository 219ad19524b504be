"""Prints the benchmarks' JSON files as the Markdown tables of RESULTS.md.

python experiments/benchmarks/table.py experiments/benchmarks/results/*.json
"""

import json
import sys
from pathlib import Path


def main(paths: list[str]):
    if not paths:
        raise SystemExit(__doc__)
    for path in map(Path, paths):
        record = json.loads(path.read_text())
        if "cases" not in record:  # the record of a program that compares nothing
            continue
        print(f"## {path.stem.replace('_', ' ')}\n\n{conditions(record)}\n")
        for sides, cases in by_sides(record["cases"]).items():
            print("\n".join([*heading(sides), *(row(case, sides) for case in cases), ""]))


def conditions(record: dict) -> str:
    found = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    cores = record["threads"] or found["cores"]
    return (
        f"{found['processor']}, {cores} cores; {versions}; commit {found['commit']}, "
        f"{found['time']} UTC; medians of {record['rounds']} in milliseconds, with quartiles."
    )


def by_sides(cases: list[dict]) -> dict[tuple[str, ...], list[dict]]:
    """Groups the cases by the names of their sides; each group is a table."""
    groups = {}
    for case in cases:
        groups.setdefault(tuple(case["sides"]), []).append(case)
    return groups


def heading(sides: tuple[str, ...]) -> list[str]:
    columns = ["", *sides, *(f"{sides[0]} / {other}" for other in sides[1:]), "load"]
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def row(case: dict, sides: tuple[str, ...]) -> str:
    cells = [case["name"]]
    for side in sides:
        low, high = (1000 * seconds for seconds in case["sides"][side]["quartiles"])
        cells.append(f"{1000 * case['sides'][side]['median']:.5g} ({low:.5g}–{high:.5g})")
    cells += [f"{case['ratios'][side]:.2f}" for side in sides[1:]]
    return f"| {' | '.join([*cells, format(case['load'], '.1f')])} |"


if __name__ == "__main__":
    main(sys.argv[1:])
