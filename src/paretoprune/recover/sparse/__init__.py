"""Training towards fewer positions: hooks of a training loop, one file per method."""

from __future__ import annotations

from paretoprune.recover.sparse.gates import Gated, L0Gates
from paretoprune.recover.sparse.greg import GrowingRegularisation
from paretoprune.recover.sparse.groups import Groups
from paretoprune.recover.sparse.lasso import GroupLasso
from paretoprune.recover.sparse.method import Held, Settling, SparseMethod, check_strength
from paretoprune.recover.sparse.schedule import SCHEDULES, schedule_of
from paretoprune.recover.sparse.soft import SoftPruning

__all__ = [
    "SCHEDULES",
    "Gated",
    "GroupLasso",
    "Groups",
    "GrowingRegularisation",
    "Held",
    "L0Gates",
    "Settling",
    "SoftPruning",
    "SparseMethod",
    "check_strength",
    "schedule_of",
]
