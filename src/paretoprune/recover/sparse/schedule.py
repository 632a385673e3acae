"""How a share grows from 0 to 1 while training goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up

Schedule = Callable[[float], float]
"""From the share of the time that has passed to the share of the way, both 0 to 1."""


def cubic(t: float) -> float:
    """1 − (1 − t)³: fast while much is redundant, slow at the end (Zhu & Gupta 2017, "To prune, or not to prune",
    arXiv:1710.01878, eq. 1 from sparsity 0 to the final one)."""
    return 1 - (1 - t) ** 3


def linear(t: float) -> float:
    return t


def cosine(t: float) -> float:
    """A half cosine: slow at both ends."""
    return 0.5 * (1 - math.cos(math.pi * t))


def constant(t: float) -> float:
    """Everything from the start, as in He et al. 2018."""
    return 1.0


SCHEDULES: Mapping[str, Schedule] = {"cubic": cubic, "linear": linear, "cosine": cosine, "constant": constant}


def schedule_of(given: str | Schedule) -> Schedule:
    """A schedule by name, the function itself, or "pkg.mod:function"; what it gives is checked. Raises UsageError."""
    found = look_up("schedule", given, SCHEDULES)
    if not callable(found):
        raise UsageError(f"schedule={given!r}: give {', '.join(SCHEDULES)}, or a function from 0..1 to 0..1")

    def checked(t: float) -> float:
        share = float(found(min(1.0, max(0.0, t))))
        if not 0 <= share <= 1:
            raise UsageError(f"schedule={given!r} gave {share} at {t:.3g} of the time; it must give 0 to 1")
        return share

    return checked
