"""The tables of a ledger in Markdown, between markers in documents.

A table stands between the lines `<!-- results: NAME -->` and `<!-- end of results -->`. NAME is a
table of the ledger, or "summary", which has a line for each model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segjax.files.atomic import write_bytes
from segjax.ledger.record import read_record, score
from segjax.ledger.rows import Ledger, Row
from segjax.messages.hints import did_you_mean
from segjax.report.results import readable

NOT_MEASURED = "not yet measured"
SUMMARY = "summary"
_BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)


def outdated(ledger: Ledger, documents: Iterable[Path]) -> list[Path]:
    """Returns the documents whose tables differ from the ledger.

    Raises:
      ValueError: a document names a table that the ledger has not, or leaves one open.
    """
    return [path for path in documents if _updated(ledger, path) != path.read_text("utf-8")]


def write_documents(ledger: Ledger, documents: Iterable[Path]) -> list[Path]:
    """Writes the ledger's tables into documents; returns those that changed.

    Raises:
      ValueError: as for `outdated`.
    """
    changed = outdated(ledger, documents)
    for path in changed:
        write_bytes(path, _updated(ledger, path).encode())
    return changed


def _updated(ledger: Ledger, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    starts, blocks = text.count("<!-- results: "), len(_BLOCK.findall(text))
    if starts != blocks:
        raise ValueError(
            f"{path} opens {starts} tables and closes {blocks}; expected <!-- end of results --> "
            "after each <!-- results: NAME -->"
        )

    def block(found: re.Match) -> str:
        start, name, _, end = found.groups()
        return start + _content(ledger, name, path) + end

    return _BLOCK.sub(block, text)


def _content(ledger: Ledger, name: str, path: Path) -> str:
    if name == SUMMARY:
        return summary(ledger)
    if name not in ledger.tables:
        known = [SUMMARY, *ledger.tables]
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise ValueError(f"{path}: no table {name!r} in the ledger{hint}")
    return table(ledger, name)


def table(ledger: Ledger, name: str) -> str:
    """Formats a table: a line for each metric of each row, and how the measured ones came about."""
    lines = [
        "",
        "| model | measure | published | ours | expected | runs |",
        "|---|---|---|---|---|---|",
    ]
    notes = []
    for row in ledger.rows.values():
        if row.table != name:
            continue
        runs = read_record(ledger, row)
        title = f"{ledger.models[row.model].name}: {row.name}"
        for place, metric in enumerate(row.measures):
            cells = [
                title if place == 0 else "",
                readable(metric),
                published(row, metric),
                measured(runs, metric, row.expected.get(metric)),
                " to ".join(map(number, row.expected.get(metric, []))) or "–",
                _size(runs) if place == 0 and runs else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        if runs:
            notes.append(_note(row, title, runs))
    return "\n".join([*lines, "", *notes, ""])


def summary(ledger: Ledger) -> str:
    """Formats a line for each model: the published headline numbers, and what ours reached.

    A row without a published number of its own is named only if it is measured.
    """
    lines = [
        "",
        "| model | paper | published | ours | experiments |",
        "|---|---|---|---|---|",
    ]
    for model in ledger.models.values():
        rows = [row for row in ledger.rows.values() if row.model == model.id and row.summary]
        theirs, ours, missing = [], [], []
        for row in rows:
            title, runs = ledger.tables[row.table].title, read_record(ledger, row)
            metric = row.measures[0]
            if metric in row.published:
                value = f"{readable(metric)} {number(row.published[metric])}"
                theirs.append(f"{title}: {value}")
            if runs:
                ours.append(f"{title}: {readable(metric)} {measured(runs, metric)} ({row.name})")
            elif row.published:
                missing.append(title)
        if missing:
            ours.append(f"{NOT_MEASURED}: {', '.join(dict.fromkeys(missing))}")
        cells = [
            model.name,
            model.paper,
            "; ".join(dict.fromkeys(theirs)),
            "; ".join(ours),
            model.experiments,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def measured(runs: Sequence[Mapping] | None, metric: str, expected: list | None = None) -> str:
    """Formats a metric of recorded runs: "0.798 ± 0.003 [0.781, 0.812]".

    After ± is the standard deviation over seeds, in brackets the 95 % interval over images.
    """
    found = score(runs, metric) if runs else None
    if found is None:
        return NOT_MEASURED
    text = number(found.mean)
    if found.deviation is not None:
        text += f" ± {number(found.deviation)}"
    if found.interval is not None:
        text += f" [{', '.join(map(number, found.interval))}]"
    if expected and not expected[0] <= found.mean <= expected[1]:
        text += " (outside)"
    return text


def number(value: float | None) -> str:
    """Formats a score with four decimals, or a small one with three digits; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.3g}"


def published(row: Row, metric: str) -> str:
    """Formats the published value; that of another network in parentheses."""
    if metric in row.compared:
        return f"({number(row.compared[metric])})"
    return number(row.published.get(metric))


def duration(seconds: float) -> str:
    """Formats a time: "41 min", "3 h 20 min"."""
    minutes = max(round(seconds / 60), 1)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def _size(runs: Sequence[Mapping]) -> str:
    steps = " or ".join(f"{n:,}" for n in dict.fromkeys(run["steps"] for run in runs))
    seconds = [run["wall_seconds"] for run in runs if run["wall_seconds"]]
    time = f", {duration(sum(seconds) / len(seconds))}" if seconds else ""
    if len(runs) == 1:
        return f"{steps} steps{time}"
    return f"{len(runs)} × {steps} steps{time} each"


def _note(row: Row, title: str, runs: Sequence[Mapping]) -> str:
    """Describes how the numbers of a row came about, as an item of a list."""
    first = runs[0]
    parts = [f"- **{title}.**"]
    if row.protocol:
        parts.append(f"{row.protocol.rstrip('.')}.")
    if row.source:
        parts.append(f"Published: {row.source.rstrip('.')}.")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    parts.append(f"Seed{'s' if len(runs) > 1 else ''} {seeds}; {first['images']} images.")
    commits = dict.fromkeys(commit[:7] for run in runs for commit in run["commits"])
    memory = [run["peak_memory_bytes"] for run in runs if run["peak_memory_bytes"]]
    facts = [
        hardware(first["environment"]),
        f"Python {first['environment']['python']}, jax {first['versions'].get('jax')}",
        f"peak memory {max(memory) / 2**30:.1f} GiB" if memory else "",
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}",
    ]
    parts.append(f"{'; '.join(filter(None, facts))}.")
    commands = [row.command, row.evaluate]
    lines = [" ".join(parts), "", "  ```", *(f"  {c}" for c in commands if c), "  ```"]
    return "\n".join(lines)


def hardware(environment: Mapping) -> str:
    """Names the devices of a run: "4 × NVIDIA H100", "2 cores of Intel Xeon"."""
    if environment["backend"] == "cpu":
        processor = environment.get("processor") or environment["platform"]
        return f"{environment['cpu_count']} cores of {processor}"
    return f"{environment['device_count']} × {environment['device_kind']}"
