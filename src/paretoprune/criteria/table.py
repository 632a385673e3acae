"""The criteria by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Criterion
from paretoprune.criteria.magnitude import Magnitude
from paretoprune.criteria.taylor import Taylor

CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Magnitude(2),
    "l1": Magnitude(1),
    "l2": Magnitude(2),
    "taylor": Taylor(),
}


def criterion_of(given: str | Criterion) -> Criterion:
    """A criterion by name, the object itself, or "pkg.mod:Class" (made without arguments). Raises UsageError."""
    found = look_up("criterion", given, CRITERIA)
    if isinstance(found, type):
        found = found()
    missing = [a for a in ("name", "members", "needs_gradients", "score") if not hasattr(found, a)]
    if missing:
        raise UsageError(f"criterion {given!r} has no {', '.join(missing)}: see paretoprune.core.protocols.Criterion")
    return cast(Criterion, found)
