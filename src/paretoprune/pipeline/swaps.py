"""Cheaper activations in a search: some of the candidates are carried out with them, and the front decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paretoprune import graph as graphs
from paretoprune.core.errors import PlanError, UsageError
from paretoprune.graph import TracedGraph
from paretoprune.pipeline.settings import Settings
from paretoprune.pipeline.space import Space
from paretoprune.pipeline.study import Study

EVERY = "*"


def check_swaps(traced: TracedGraph, settings: Settings) -> None:
    """Refuse, before any work, what this network has no activation for."""
    for name in settings.activations:
        try:
            graphs.activated(traced, {EVERY: name})
        except PlanError as error:
            raise UsageError(f"activations={list(settings.activations)}: {error}") from error


def with_swaps(
    study: Study, space: Space, chosen: Sequence[Mapping[str, int]]
) -> tuple[list[Mapping[str, int]], list[str]]:
    """(widths, activation or "") of every candidate.

    Half of them keep the network's own activations; along the MACs every second one has others, in turns, so that
    both cover the range. The whole network with each of them competes too, for an exchange alone may do.
    """
    names = study.settings.activations
    if not names:
        return list(chosen), [""] * len(chosen)
    whole = {c.axis: c.widths[-1] for c in space.choices}

    def decide() -> dict[str, Any]:
        plans = [space.plan(study, widths) for widths in chosen]
        macs = [study.traced.macs({a: len(k) for a, k in p.kept.items()}, p.blocks) for p in plans]
        order = sorted(range(len(chosen)), key=macs.__getitem__)
        swaps = [""] * len(chosen)
        for place, index in enumerate(order):
            swaps[index] = names[place // 2 % len(names)] if place % 2 else ""
        return {"swaps": [*swaps, *names]}

    swaps = study.once("activations", "by candidate", decide)["swaps"]
    return [*chosen, *[whole] * len(names)], list(swaps)
