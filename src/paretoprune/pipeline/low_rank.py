"""Ranks in a plan: which layers become two thin ones, and carrying that out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from torch import nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.errors import PlanError, UsageError
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Choice
from paretoprune.graph import Cut, Rebuilt, TracedGraph
from paretoprune.pipeline.choose import check_positive
from paretoprune.pipeline.opening import rebuilt_thin
from paretoprune.recover.gram import COLUMNS_CAP
from paretoprune.search.allocate import allocate

AUTO = "auto"
SPLITS = ("space", "channels")
"""How a k × k convolution is divided: k × 1 and 1 × k, or k × k and 1 × 1. Other layers have no choice."""
GRAM_SAMPLES = 512
RECALIBRATION_SAMPLES = 1024
RANKS_PER_LAYER = 12

Rank = int | float
RankChoice = Rank | str | Mapping[str, Rank] | None


def check_ranks(ranks: RankChoice, split: str, macs: float | None) -> None:
    """Raises UsageError for what cannot be read, or where macs= would not be kept."""
    if split not in SPLITS:
        raise UsageError(f"split={split!r}: give 'space' (k × 1, then 1 × k) or 'channels' (k × k, then 1 × 1)")
    if isinstance(ranks, str) and ranks != AUTO:
        raise UsageError(f"ranks={ranks!r}: give a rank, a share of the MACs, a dict by weight name, or '{AUTO}'")
    if ranks == AUTO and macs is None:
        raise UsageError(f"ranks='{AUTO}' chooses the ranks that bring the MACs to a share: give macs= too")
    if ranks is not None and ranks != AUTO and macs is not None:
        raise UsageError(f"macs= speaks of axes, or of ranks='{AUTO}': give ratio= beside ranks={str(ranks)[:60]}")
    for pattern, rank in _table(ranks).items():
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        if not whole and not (isinstance(rank, float) and 0 < rank < 1):
            raise UsageError(
                f"ranks={rank!r} for '{pattern}': give a rank (a whole number from 1), or the share of the layer's "
                "MACs that stays (above 0, below 1)"
            )


def _table(ranks: RankChoice) -> Mapping[str, Rank]:
    if ranks is None or isinstance(ranks, str):
        return {}
    return ranks if isinstance(ranks, Mapping) else {"*": ranks}


def with_ranks(
    traced: TracedGraph,
    plan: Plan,
    ranks: RankChoice,
    split: str,
    macs: float | None,
    batches: Iterable[Any] | None,
    align: int = 1,
) -> tuple[Plan, list[str]]:
    """The plan with the ranks that are meant, and a sentence on the layers that a pattern meant in vain.

    Ranks that are not given as numbers are multiples of `align` where that leaves one.
    """
    if ranks is None:
        return plan, []
    check_positive(align=align)
    if ranks == AUTO:
        chosen = allocated(traced, plan, split, 1.0 if macs is None else macs, batches, align)
        return replace(plan, ranks=chosen, spatial=_spatial(traced, chosen, split)), []
    widths, found = _widths(plan), traced.low_rank
    chosen = {}
    left: dict[str, list[str]] = {}
    for pattern, rank in _table(ranks).items():
        names = [w for w in (*found.layers, *found.refused) if fnmatchcase(w, pattern)]
        if not names:
            raise UsageError(f"ranks names '{pattern}', which is no matrix of this network: {_some(found.layers)}")
        for name in (n for n in names if n not in chosen):
            spatial = _spatial(traced, [name], split)
            wanted = _rank(traced, name, rank, bool(spatial), widths, align)
            try:
                chosen |= traced.checked_ranks({name: wanted}, widths, plan.blocks, spatial)
            except PlanError as error:
                if name == pattern:
                    raise
                left.setdefault(str(error).partition(": ")[2], []).append(name)
    told = [f"not factorised: {', '.join(n for n in names if n not in chosen)} ({why})" for why, names in left.items()]
    if not chosen:
        raise PlanError(f"ranks={str(ranks)[:60]} factorises nothing; {'; '.join(told[:4])}")
    return replace(plan, ranks=chosen, spatial=_spatial(traced, chosen, split)), told


def _spatial(traced: TracedGraph, weights: Iterable[str], split: str) -> tuple[str, ...]:
    """Those of `weights` whose kernel is divided."""
    layers = traced.low_rank.layers if split == "space" else {}
    return tuple(sorted(w for w in weights if w in layers and layers[w].spatial))


def _rank(traced: TracedGraph, name: str, rank: Rank, spatial: bool, widths: Mapping[str, int], align: int) -> int:
    """The rank itself, or the one at which so much of the layer's work is left."""
    if isinstance(rank, int) or name not in traced.low_rank.layers:
        return int(rank)
    return _down(traced.split(name, spatial, widths).at(rank), align)


def _down(rank: int, align: int) -> int:
    """The multiple of `align` at or below the rank, which stays where there is none."""
    return rank - rank % align or rank


def allocated(
    traced: TracedGraph, plan: Plan, split: str, share: float, batches: Iterable[Any] | None, align: int = 1
) -> dict[str, int]:
    """Ranks that bring the MACs to `share` of the original's at the least sum of energy shares lost.

    The knapsack over one layer at a time; what a layer loses is exact for it alone.
    """
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f"macs={share!r}: give the share of the MACs to keep, above 0 and at most 1")
    widths = _widths(plan)
    gone = traced.residual.gone_tensors(plan.blocks)
    usable = [c for c in traced.program.contractions if c.weight in traced.low_rank.layers and c.weight not in gone]
    grams = {} if batches is None else recover.collect_grams(traced.program, usable, batches, samples=GRAM_SAMPLES)
    choices, whole = [], traced.macs(widths, plan.blocks)
    for contraction in usable:
        spatial = _spatial(traced, [contraction.weight], split)
        most = traced.split(contraction.weight, bool(spatial), widths).largest
        if not most:
            continue
        ranks = _candidates(most, align)
        costs = [float(traced.macs(widths, plan.blocks, {contraction.weight: r}, spatial)) for r in ranks]
        gram = grams.get(contraction.node)
        lost = recover.program_errors(traced.program, contraction, gram, ranks, bool(spatial))
        choices.append(Choice(contraction.weight, (*ranks, most + 1), (*lost, 0.0), (*costs, float(whole))))
    target = share * traced.macs()
    fronts = allocate(choices) if choices else ()
    fitting = [a for a in fronts if a.cost <= target + 0.5]
    if not fitting:
        least = math.ceil(1000 * min((a.cost for a in fronts), default=whole) / traced.macs()) / 1000
        raise PlanError(f"macs={share:g} cannot be reached by ranks: {least:g} of the MACs are left at rank 1")
    best = min(fitting, key=lambda a: (a.error, -a.cost)).widths
    whole_at = {c.axis: c.widths[-1] for c in choices}
    return {w: r for w, r in best.items() if r < whole_at[w]}


def _candidates(most: int, align: int) -> list[int]:
    """Multiples of `align` up to `most`, thinned evenly; every rank where there is no multiple."""
    every = range(align, most + 1, align) or range(1, most + 1)
    picks = np.linspace(0, len(every) - 1, min(len(every), RANKS_PER_LAYER)).round()
    return [every[int(i)] for i in picks]


def carry_in(
    model: nn.Module, traced: TracedGraph, cut: Cut, own: Rebuilt, plan: Plan, batches: Iterable[Any] | None
) -> tuple[Cut, Rebuilt, list[str]]:
    """Factorise what was cut and recovered, prove it, put it into the user's class; batch norms are taken again.

    The inputs' moments are those of the network as it was cut: what the layers really see.
    """
    left = [c for c in cut.program.contractions if c.weight in plan.ranks]
    grams = {} if batches is None else recover.collect_grams(cut.program, left, batches, samples=GRAM_SAMPLES)
    found = recover.factorise_program(cut.program, plan.ranks, grams, spatial=plan.spatial)
    names = [graphs.names_of(cut, c, c.weight in plan.spatial) for c in left]
    thin = graphs.thinned(traced, cut, {w: (f.first, f.second) for w, f in found.items()}, names)
    graphs.check_thin(traced, cut, thin, names)
    own = rebuilt_thin(model, own, thin, names, traced.example)
    told = []
    if batches is not None:
        told = [
            f"'{c.weight}' was factorised without looking at data: more than {COLUMNS_CAP} columns"
            for c in left
            if c.node not in grams
        ]
        recover.recalibrate(thin.program, batches, samples=RECALIBRATION_SAMPLES)
    return thin, own, told


def _widths(plan: Plan) -> dict[str, int]:
    return {axis: len(kept) for axis, kept in plan.kept.items()}


def _some(names: Iterable[str]) -> str:
    every = [f"'{n}'" for n in names]
    more = f" and {len(every) - 12} more" if len(every) > 12 else ""
    return f"it has {', '.join(every[:12])}{more}" if every else "it has none that can be factorised"
