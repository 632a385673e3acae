"""How many random networks and plans the property tests draw."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PLANS = 4
"""Plans for each network."""
_GIVEN = os.environ.get("PARETOPRUNE_RANDOM_CASES")
"""`make random` sets it to 5,000; without it the same 48 cases are drawn every time."""

sampled = settings(
    max_examples=int(_GIVEN or 48) // PLANS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=_GIVEN is None,
)
