"""`segjax report`: writes an HTML page about a run, or one that compares several."""

from pathlib import Path
from typing import Annotated

import tyro

from segjax.commands.errors import UserError, user_errors


def report_command(
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...", help_behavior_hint="")],
    /,
    *,
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help_behavior_hint="(default: RUN/report.html; ./report.html for several runs)",
        ),
    ] = None,
) -> None:
    """Write the report of a run, or a comparison of several, as one self-contained HTML file.

    Args:
      runs: Run directories; a run may still be in progress.
      output: HTML file to write.
    """
    if not runs:
        raise UserError("no run directory given; expected the --workdir of one or more trainings")
    if output is None:
        output = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    if output.suffix != ".html":
        raise UserError(f"--output {output}: expected a name ending in .html")
    with user_errors():
        from segjax.report import write_report

        print(f"report  {write_report(runs, output)}")
