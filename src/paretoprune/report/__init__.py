"""One self-contained page, terminal tables, and progress."""

from __future__ import annotations

from paretoprune.report.bounds import LimitFacts, LimitLine
from paretoprune.report.data import ReportData, RunFacts

__all__ = ["LimitFacts", "LimitLine", "ReportData", "RunFacts"]
