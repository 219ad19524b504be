"""Writes one HTML file about one run or several, from the files of run directories."""

from segjax.report.document import write_report

__all__ = ["write_report"]
