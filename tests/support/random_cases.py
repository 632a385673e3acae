"""How many random networks and plans the property tests draw."""

from __future__ import annotations

import os
from typing import Any

import torch
from hypothesis import HealthCheck, settings

from paretoprune import graph as graphs
from paretoprune.core.errors import SurgeryError
from paretoprune.core.plan import Plan
from paretoprune.graph import TracedGraph

PLANS = 4
"""Plans for each network."""
_GIVEN = os.environ.get("PARETOPRUNE_RANDOM_CASES")
"""`make random` sets it to 5,000; without it the same 16 cases are drawn every time."""

sampled = settings(
    max_examples=int(_GIVEN or 16) // PLANS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=_GIVEN is None,
)


def refused(graph: TracedGraph, plan: Plan, cut: Any) -> bool:
    """Does the self-check refuse the plan? It may where what is left gives the same for every input of the check."""
    try:
        graphs.check(graph, plan)
    except SurgeryError as error:
        if "the self-check proves nothing" not in str(error):
            raise
        with torch.no_grad():
            one, other = (cut.program.module(*graphs.randomised(graph.example, seed, 2).args) for seed in (0, 2))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
        return True
    return False
