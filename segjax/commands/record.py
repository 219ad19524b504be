"""`segjax record`: records finished runs in the ledger of results."""

from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.errors import UserError, user_errors
from segjax.messages.hints import did_you_mean

LedgerFolder = Annotated[
    Path | None,
    tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: experiments/results)"),
]


def record_command(
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")],
    /,
    *,
    row: Annotated[str, tyro.conf.arg(metavar="ID")],
    ledger: LedgerFolder = None,
) -> None:
    """Record finished runs of one row of the ledger, with different seeds, as committed JSON.

    The record has the scores with their intervals, curves, time, speed, memory, hardware, versions
    and commits. It replaces the row's earlier record. A run is refused if it is unfinished, differs
    from the row's command in more than the seed, or ran with uncommitted changes.

    Args:
      runs: Run directories.
      row: The row's id, as `segjax results` lists it.
      ledger: Folder of the ledger.
    """
    if not runs:
        raise UserError("no run directory given; expected the --workdir of one or more trainings")
    with user_errors():
        from segjax.ledger.record import read_record, record_runs
        from segjax.ledger.rows import read_ledger
        from segjax.ledger.tables import measured

        found = read_ledger(ledger or default_ledger())
        if row not in found.rows:
            hint = did_you_mean(row, found.rows) or "; segjax results lists all of them"
            raise UserError(f"--row {row}: no such row{hint}")
        path = record_runs(found, found.rows[row], runs)
        recorded = read_record(found, found.rows[row])
        for metric in found.rows[row].measures:
            print(f"{metric:24}  {measured(recorded, metric)}")
    print(f"record  {path}\nTo write it into the tables: segjax results --write")


def default_ledger() -> Path:
    """Returns the folder of segjax's own ledger.

    Raises:
      UserError: an installed segjax has none.
    """
    from segjax.training.experiment_files import experiments_folder

    folder = experiments_folder() / "results"
    if not folder.is_dir():
        raise UserError(
            "an installed segjax has no ledger of results; give --ledger DIR, or run the command "
            "in a checkout"
        )
    return folder
