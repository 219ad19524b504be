"""The harness of the benchmarks: sides in processes of their own, by turns, and their record."""

import json
import re
import sys

import pytest

from experiments.benchmarks import goals, measure, table
from experiments.benchmarks.measure import Options, Results, Side, Timing, compare, environment

SIDES = """
import os

def appending(path, name, fails_at=None):
    def call():
        with open(path, "a") as file:
            file.write(name)
        call.note = f"process {os.getpid()}"
        if fails_at is not None and open(path).read().count(name) == fails_at:
            raise SystemExit(3)
    return call

def counting(path, name):
    return lambda: 0.25 if name == "a" else 0.5
"""


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """Two sides of a module, and a file that they write to."""
    (tmp_path / "sides.py").write_text(SIDES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(function, **arguments):
        return [
            Side(name, f"sides:{function}", arguments=(("name", name), *arguments.items()))
            for name in "ab"
        ]

    return make


def test_sides_run_by_turns_each_in_its_own_process(sides, tmp_path):
    path = tmp_path / "calls"
    timings = compare(sides("appending"), {"path": str(path)}, rounds=3)
    # The first call, one to warm up, three rounds.
    assert path.read_text() == "ab" * 5
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}
    assert timings["a"].note != timings["b"].note
    assert min(timing.peak_bytes for timing in timings.values()) > 2**20


def test_processes_may_be_kept_for_the_next_case(sides, tmp_path):
    running, arguments = {}, {"path": str(tmp_path / "calls")}
    try:
        first = compare(sides("appending"), arguments, rounds=1, running=running)
        second = compare(sides("appending"), arguments, rounds=1, running=running)
    finally:
        for worker in running.values():
            worker.close()
    assert {n: t.note for n, t in first.items()} == {n: t.note for n, t in second.items()}


def test_a_side_that_dies_is_named(sides, tmp_path):
    arguments = {"path": str(tmp_path / "calls"), "fails_at": 3}
    with pytest.raises(RuntimeError, match="a: sides:appending ended with 3"):
        compare(sides("appending"), arguments, rounds=3)


def test_a_call_may_count_its_own_seconds_and_the_record_holds_the_ratio(sides, tmp_path, capsys):
    output = tmp_path / "case.json"
    results = Results(Options(output=output, rounds=2))
    results.add("work", compare(sides("counting"), {"path": ""}, rounds=2), size=7)
    record = json.loads(output.read_text())
    (case,) = record["cases"]
    assert case["sides"]["a"]["seconds"] == [0.25, 0.25]
    assert case["ratios"] == {"b": 0.5}
    assert case["size"] == 7
    assert record["environment"]["versions"]["python"] == sys.version.split()[0]
    assert (
        "work: a 250 ms (250–250), b 500 ms (500–500), ratio to b 0.50" in capsys.readouterr().out
    )
    table.main([str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert "|  | a | b | a / b | load |" in lines
    assert lines[-2].startswith("| work | 250 (250–250) | 500 (500–500) | 0.50 |")


def test_without_git_the_record_says_that_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment([sys.executable])["commit"] == "unknown"


def test_a_copy_inside_another_repository_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    assert environment([sys.executable])["commit"] == "unknown"


def test_median_and_quartiles_are_those_of_the_rounds():
    timing = Timing(seconds=(5.0, 1.0, 2.0, 4.0, 3.0), first_seconds=9.0, peak_bytes=0)
    assert (timing.median, timing.quartiles) == (3.0, (2.0, 4.0))
    assert Timing((7.0,), 9.0, 0).quartiles == (7.0, 7.0)


def test_goals_compare_with_the_better_torch_and_name_what_is_not_measured(tmp_path, capsys):
    def sides(ours, torch, channels_last):
        names = ("segjax", "torch", "torch channels-last")
        values = zip(names, (ours, torch, channels_last), strict=True)
        return {name: {"median": s, "peak_bytes": b} for name, (s, b) in values}

    cases = [
        {"name": "unet, train step, 2", "sides": sides((3.0, 12), (2.0, 10), (4.0, 20))},
        {"name": "mask_rcnn, inference, 1", "sides": sides((1.1, 9), (2.0, 1), (4.0, 1))},
    ]
    (tmp_path / "models.json").write_text(json.dumps({"cases": cases}))
    goals.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "| unet, train step, 2 | time | 1.50 | ≤ 1 | **missed** |",
        "| mask_rcnn, inference, 1 | time | 0.55 | ≤ 0.6 | met |",
        "| unet, train step, 2 | peak memory | 1.20 | ≤ 1.2 | met |",
    ]
    assert "| evaluation | time | not yet measured | ≤ 1 | |" in lines
    assert lines[-1] == "2 of 3 measured goals are met."


@pytest.mark.parametrize("goal", goals.GOALS, ids=lambda goal: f"{goal.file}: {goal.what}")
def test_each_goal_with_results_finds_its_cases(goal):
    path = goals.HERE / "results" / f"{goal.file}.json"
    if not path.exists():
        pytest.skip(f"{goal.file} is not yet measured")
    cases = json.loads(path.read_text())["cases"]
    found = [case for case in cases if re.fullmatch(goal.cases, case["name"])]
    assert found
    assert all(goal.measure(case) > 0 for case in found if "torch" in case["sides"])
