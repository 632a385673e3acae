"""How much each position of an axis matters: one file per criterion, one line in `table.py`."""

from __future__ import annotations

from paretoprune.criteria.scoring import score_axes
from paretoprune.criteria.table import CRITERIA, criterion_of

__all__ = ["CRITERIA", "criterion_of", "score_axes"]
