"""Which residual blocks go: by name, or so many of them in a strategy's order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paretoprune import graph as graphs
from paretoprune.core.axis import Axis
from paretoprune.core.block import Block
from paretoprune.core.errors import DataError, PlanError, UsageError
from paretoprune.core.protocols import Criterion, View
from paretoprune.graph import TracedGraph

STRATEGIES = ("deepest", "shallowest", "middle", "score")
BLOCKS_KEY = "blocks"
"""In a ratio by name pattern: the share of the removable blocks."""
INFLUENCE_SAMPLES = 256

BlockChoice = str | Sequence[str] | None


def check_choice(blocks: BlockChoice, ratio: float | Mapping[str, float] | None, macs: float | None) -> None:
    """Raises UsageError for a choice that cannot be read, or where what is to be removed is not said."""
    if isinstance(blocks, str) and blocks not in STRATEGIES:
        known = ", ".join(repr(s) for s in STRATEGIES)
        raise UsageError(f"blocks={blocks!r}: give one of {known}, or a list of names and patterns: [{blocks!r}]")
    if blocks is not None and not isinstance(blocks, (str, list, tuple)):
        raise UsageError(f"blocks={str(blocks)[:80]}: give a strategy, or a list of names and patterns")
    if isinstance(blocks, (list, tuple)) and not all(isinstance(b, str) for b in blocks):
        raise UsageError(f"blocks={str(blocks)[:80]}: every entry is the name of a block or a pattern of names")
    if ratio is not None and macs is not None:
        raise UsageError("give either ratio= (share of positions to remove) or macs= (share of MACs to keep)")
    if ratio is None and macs is None and not isinstance(blocks, (list, tuple)):
        more = "" if blocks is None else f"; blocks={blocks!r} alone does not say how many of them go"
        raise UsageError(f"give either ratio= (share of positions to remove) or macs= (share of MACs to keep){more}")
    if isinstance(blocks, str) and isinstance(ratio, Mapping) and BLOCKS_KEY not in ratio:
        raise UsageError(
            f"blocks={blocks!r} with a ratio by name: add the share of blocks that go, "
            f"ratio={{'{BLOCKS_KEY}': 0.25, …}}"
        )


def axis_ratio(blocks: BlockChoice, ratio: float | Mapping[str, float] | None) -> float | Mapping[str, float] | None:
    """What the ratio says of axes; None where it speaks of blocks alone."""
    if isinstance(blocks, str) and isinstance(ratio, Mapping):
        return {k: v for k, v in ratio.items() if k != BLOCKS_KEY} or None
    return ratio


def chosen_blocks(
    traced: TracedGraph,
    blocks: BlockChoice,
    ratio: float | Mapping[str, float] | None,
    macs: float | None,
    scorer: Criterion,
    batches: Iterable[Any] | None,
) -> tuple[str, ...]:
    """Names of the blocks that go, in the order of the graph. Raises PlanError, UsageError, DataError."""
    if not isinstance(blocks, str):
        return traced.residual.named(blocks or ())
    free = [b for b in traced.blocks if b.removable]
    if not free:
        why = "; ".join(f"'{b.name}': {b.why}" for b in traced.blocks[:4])
        raise PlanError(f"blocks={blocks!r}: this network has no residual block that can go{why and f' ({why})'}")
    ordered = in_order(traced, free, blocks, scorer, batches)
    if ratio is None:
        chosen = _by_macs(traced, ordered, macs if macs is not None else 1.0)
    else:
        share = ratio[BLOCKS_KEY] if isinstance(ratio, Mapping) else ratio
        if not isinstance(share, (int, float)) or not math.isfinite(share) or not 0 <= share <= 1:
            raise UsageError(f"ratio={share!r} for '{BLOCKS_KEY}': give the share of blocks to remove, from 0 to 1")
        chosen = ordered[: math.floor(len(free) * share + 1e-9)]
    return traced.residual.named(chosen)


def _by_macs(traced: TracedGraph, ordered: Sequence[str], share: float) -> list[str]:
    """The longest start of this order with which the target is not passed."""
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f"macs={share!r}: give the share of the MACs to keep, above 0 and at most 1")
    target = share * traced.macs()
    chosen: list[str] = []
    for name in ordered:
        if traced.macs({}, traced.residual.named([*chosen, name])) < target:
            break
        chosen.append(name)
    return chosen


def in_order(
    traced: TracedGraph, blocks: Sequence[Block], strategy: str, scorer: Criterion, batches: Iterable[Any] | None
) -> list[str]:
    """Names of `blocks` (in the order of the graph), the first to go first."""
    names = [b.name for b in blocks]
    if strategy == "deepest":
        return names[::-1]
    if strategy == "middle":
        centre = (len(names) - 1) / 2
        return [names[i] for i in sorted(range(len(names)), key=lambda i: (abs(i - centre), -i))]
    if strategy == "score":
        scores = block_scores(traced, blocks, scorer, batches)
        return sorted(names, key=scores.__getitem__)
    return names


def block_scores(
    traced: TracedGraph, blocks: Sequence[Block], scorer: Criterion, batches: Iterable[Any] | None
) -> dict[str, float]:
    """Importance by block: Block Influence on the batches; without them, the criterion's score per parameter."""
    if batches is not None:
        return graphs.influences(traced, [b.name for b in blocks], batches, INFLUENCE_SAMPLES)
    if scorer.needs:
        needs = ", ".join(sorted(scorer.needs))
        raise DataError(
            f"criterion {scorer.name!r} needs {needs}, which blocks='score' has not: give calibration= batches, and "
            "blocks are scored by their influence"
        )
    tensors = graphs.tensors_of(traced.program.module)
    result = {}
    for block in blocks:
        matrices = [tensors[name].detach().flatten(1).float() for name in block.weights]
        total = sum(float(scorer.score(View(m)).double().sum()) for m in matrices)
        result[block.name] = total / max(sum(m.numel() for m in matrices), 1)
    return result


def living(traced: TracedGraph, axes: Sequence[Axis], blocks: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that stand in some tensor besides those that go with the blocks."""
    gone = traced.residual.gone_tensors(blocks)
    return tuple(a for a in axes if any(m.name not in gone for m in a.members))
