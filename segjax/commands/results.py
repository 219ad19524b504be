"""`segjax results`: lists the ledger of results, and keeps the documents' tables equal to it."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.commands.record import LedgerFolder, default_ledger


def results_command(
    *,
    write: bool = False,
    check: bool = False,
    ledger: LedgerFolder = None,
    documents: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(
            metavar="FILE ...",
            help_behavior_hint="(default: experiments/RESULTS.md and README.md)",
        ),
    ] = (),
) -> None:
    """List published results and what ours reached; write the tables of the documents, or check.

    Without --write and --check, it lists every row: its id, what was measured, and for what is
    missing the least time on one NVIDIA H100, estimated from compiled programs.

    Args:
      write: Write the tables into the documents.
      check: End with status 1 if a document's tables differ from the ledger.
      ledger: Folder of the ledger.
      documents: Markdown files with tables between <!-- results: NAME --> and
        <!-- end of results -->.
    """
    if write and check:
        raise UserError("--write and --check: expected one of them")
    folder = ledger or default_ledger()
    with user_errors():
        from segjax.ledger.rows import read_ledger
        from segjax.ledger.tables import outdated, write_documents

        found = read_ledger(folder)
        files = documents or (folder.parent / "RESULTS.md", folder.parents[1] / "README.md")
        if write:
            changed = write_documents(found, files)
            print("\n".join(f"written  {path}" for path in changed) or "nothing to write")
        elif check:
            different = outdated(found, files)
            if different:
                names = ", ".join(map(str, different))
                print(
                    f"error: {names} differ from {folder}; segjax results --write", file=sys.stderr
                )
                sys.exit(1)
            print(f"{len(files)} documents agree with {folder}")
        else:
            print(_listing(found, folder))


def _listing(ledger, folder: Path) -> str:
    """Formats all rows as text, then how many are missing and what they would cost at least."""
    from segjax.ledger.cost import compiled_programs, least_hours
    from segjax.ledger.record import read_record
    from segjax.ledger.tables import NOT_MEASURED, measured, published

    programs = compiled_programs(folder.parent / "benchmarks" / "results")
    lines, missing, hours = [["ROW", "MEASURE", "PUBLISHED", "OURS"]], [], []
    for row in ledger.rows.values():
        runs = read_record(ledger, row)
        cost = None if runs else least_hours(row, programs)
        if not runs:
            missing.append(row)
            hours += [] if cost is None else [cost]
        for place, metric in enumerate(row.measures):
            ours = measured(runs, metric, row.expected.get(metric))
            if cost is not None and place == 0:
                ours = f"{NOT_MEASURED}; at least {cost:.1f} h on an H100"
            lines.append([row.id if place == 0 else "", metric, published(row, metric), ours])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    summary = f"{len(ledger.rows) - len(missing)} of {len(ledger.rows)} rows are measured."
    if missing:
        summary += (
            f" Of the {len(missing)} missing ones, {len(hours)} have a compiled program: together "
            f"at least {sum(hours):,.0f} h on one H100, an estimate from arithmetic and memory "
            "traffic at the card's peak rates."
        )
    return "\n".join([*text, "", summary])
