"""The report: one HTML file about one or several runs, made from their run directories."""

from segjax.report.document import write_report

__all__ = ["write_report"]
