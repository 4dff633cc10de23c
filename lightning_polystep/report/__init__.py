"""A run as one page of HTML."""

from lightning_polystep.report.command import report
from lightning_polystep.report.run import ReportError

__all__ = ["ReportError", "report"]
