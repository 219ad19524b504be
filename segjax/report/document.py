"""The whole report: scores, curves, examples, and how to repeat the run."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from segjax.files.atomic import write_text
from segjax.report.charts import format_number
from segjax.report.examples import examples
from segjax.report.page import page, section, table
from segjax.report.results import all_splits, best_index, classes, curves, readable, scores
from segjax.report.run import Run, differing, headline, load_runs

_UNCOMPARED = ("workdir", "command")  # these configuration entries always differ


def write_report(
    run_directories: str | os.PathLike | Sequence[str | os.PathLike], output: str | os.PathLike
) -> Path:
    """Writes a report of one run directory, or a comparison of several; returns its path.

    The file is self-contained: it includes styles, curves and pictures. Runs in progress and killed
    runs get a report too, which lists what is missing.

    Args:
        run_directories: one path or several. The report reads config.json, environment.json,
            metrics.jsonl, evaluation/<split>.json and predictions/*.png.
        output: the HTML file, written atomically.

    Raises:
        FileNotFoundError: a run directory does not exist.
        ValueError: a directory holds none of a run's files or is given twice, or a confusion matrix
            does not fit its classes.
    """
    if isinstance(run_directories, str | os.PathLike):
        run_directories = [run_directories]
    runs = load_runs(run_directories)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    parts = [
        f"<header>\n<h1>{escape(title)}</h1>\n{_summary(runs)}\n</header>",
        _facts(runs[0]) if len(runs) == 1 else _comparison(runs),
        _missing(runs),
        scores(runs),
        curves(runs),
        classes(runs),
        examples(runs),
        _reproduction(runs),
        _details(runs),
    ]
    return write_text(output, page(title, "\n".join(filter(None, parts))))


def _main_score(runs: Sequence[Run]) -> tuple[str, str] | None:
    """Returns the split and the name of the score to compare runs by; None without scores."""
    for split in all_splits(runs):
        if (name := headline(runs, split)) is not None:
            return split, name
    return None


def _value(run: Run, main: tuple[str, str] | None) -> float | None:
    return run.scores(main[0])[1].get(main[1]) if main else None


def _summary(runs: Sequence[Run]) -> str:
    main = _main_score(runs)
    if main is None:
        result = "No scores yet"
    else:
        score = f"{readable(main[1])} on {main[0]}"
        values = [_value(run, main) for run in runs]
        result = f"No run is ahead in {escape(score)}"
        if len(runs) == 1:
            result = f"<b>{escape(score)}: {format_number(values[0])}</b>"
        elif (best := best_index(main[1], values)) is not None:
            others = ", ".join(
                f"{run.name} {format_number(value)}"
                for run, value in zip(runs, values, strict=True)
                if run is not runs[best]
            )
            winner = f"{runs[best].name} has the best {score}, {format_number(values[best])}"
            result = f"<b>{escape(winner)}</b> ({escape(others)})"
    if len(runs) == 1:
        result += f", {escape(_progress(runs[0]))}"
    return f'<p class="lead">{result}.</p>'


def _progress(run: Run) -> str:
    """Describes how far a run came, in what time and on which devices."""
    done, asked = run.last_step, run.num_steps
    if done is None:
        return "no step logged"
    if asked is None:
        text = f"after {done:,} steps"
    elif run.stopped:
        text = f"stopped after {done:,} of {asked:,} steps, since {run.stopped},"
    elif done < asked:
        text = f"after {done:,} of {asked:,} steps (in progress, or stopped early)"
    else:
        text = f"after {done:,} steps"
    if run.seconds is not None:
        text += f" in {_duration(run.seconds)}"
    return text + (f" on {_devices(run)}" if _devices(run) != "–" else "")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _devices(run: Run) -> str:
    kind = run.environment.get("device_kind")
    return f"{run.environment.get('device_count', 1)} × {kind}" if kind else "–"


def _commit(run: Run) -> str:
    """Returns the commit's first ten characters, with a star for uncommitted changes."""
    commit, _, changes = str(run.environment.get("commit") or "").partition(" ")
    return commit[:10] + "*" * bool(changes) if commit else "–"


def _steps(run: Run) -> str:
    done = "–" if run.last_step is None else f"{run.last_step:,}"
    return f"{done} / {run.num_steps:,}" if run.num_steps is not None else done


def _speed(run: Run) -> str:
    return format_number(run.images_per_second)


def _facts(run: Run) -> str:
    main = _main_score([run])
    facts = {
        "Steps": _steps(run),
        "Time": _duration(run.seconds),
        "Images/s, median": _speed(run),
        "Devices": _devices(run),
        "Commit": _commit(run),
    }
    if main:
        facts = {f"{readable(main[1])}, {main[0]}": format_number(_value(run, main))} | facts
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _comparison(runs: Sequence[Run]) -> str:
    """Tabulates the runs, and the configuration and environment entries in which they differ."""
    main = _main_score(runs)
    values = [_value(run, main) for run in runs]
    best = best_index(main[1], values) if main else None
    rows = [
        [
            run.name,
            format_number(value),
            _steps(run),
            _duration(run.seconds),
            _speed(run),
            _devices(run),
            _commit(run),
        ]
        for run, value in zip(runs, values, strict=True)
    ]
    name = f"{readable(main[1])}, {main[0]}" if main else "score"
    overview = table(
        ["run", name, "steps", "time", "images/s", "devices", "commit"],
        rows,
        best=[1 if index == best else None for index in range(len(runs))],
    )
    parts = [overview]
    for title, sources in (
        ("configuration", [run.config for run in runs]),
        ("environment", [run.environment for run in runs]),
    ):
        rows = [
            [key, *map(_text, row)]
            for key, row in differing(sources).items()
            if key not in _UNCOMPARED
        ]
        parts.append(
            f"<h3>What differs in the {title}</h3>"
            + table(["", *(run.name for run in runs)], rows, style="text")
            if rows
            else f'<p class="note">The {title} is the same in all runs.</p>'
        )
    return section("Runs", *parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value)


def _missing(runs: Sequence[Run]) -> str:
    items = "".join(
        f"<li>{escape(f'{run.name}: ' * (len(runs) > 1) + sentence)}</li>"
        for run in runs
        for sentence in run.missing
    )
    return f'<div class="missing">Not in this report:<ul>{items}</ul></div>' if items else ""


def _reproduction(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        commit, _, changes = str(run.environment.get("commit") or "").partition(" ")
        lines = ([f"git checkout {commit}"] if commit else []) + [run.command or ""]
        text = "\n".join(filter(None, lines))
        parts += [
            f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "",
            f"<pre>{escape(text)}</pre>" if text else "",
            '<p class="note">config.json names no command.</p>' if not run.command else "",
            '<p class="note">The checkout had uncommitted changes: the commit alone does not '
            "repeat the run.</p>"
            if changes
            else "",
        ]
    return section("How to repeat it", *parts)


def _details(runs: Sequence[Run]) -> str:
    parts = []
    for run in runs:
        for title, entries in (
            ("Configuration", run.config),
            ("Environment", run.environment),
        ):
            rows = [[key, _text(value)] for key, value in entries.items()]
            name = f"{title} of {run.name}" if len(runs) > 1 else title
            if rows:
                parts.append(
                    f"<details><summary>{escape(name)}</summary>"
                    f"{table(['', ''], rows, style='text')}</details>"
                )
        parts.append(f'<p class="note">Read from {escape(str(run.directory))}</p>')
    return section("Configuration and environment", *parts)
