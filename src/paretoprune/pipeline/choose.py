"""From scores to a plan: which axes, how many positions of each, and which ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from paretoprune.core.axis import INNER_KINDS, Axis, Scores
from paretoprune.core.errors import ModelError, PlanError, UsageError
from paretoprune.core.graph import Graph
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Choice
from paretoprune.search.allocate import Allocation, allocate

AxisChoice = str | Callable[[Axis], bool]
MAX_WIDTHS = 32
"""Widths per axis that an allocation looks at: the curve between them is straight enough."""


def chosen_axes(graph: Graph, axes: AxisChoice = "inner", ignore: Sequence[str] = ()) -> tuple[Axis, ...]:
    """The prunable axes that `axes` means, without those whose id matches a pattern of `ignore`.

    "inner": heads, hidden units, inner channels, recurrent units. "all": also the residual stream, head size, rotary
    pairs, embedding width and what lies within a group. A callable decides for itself. Raises UsageError, or ModelError
    where nothing is left.
    """
    if isinstance(axes, str) and axes not in ("inner", "all"):
        raise UsageError(f"axes={axes!r}: give 'inner', 'all', or a function from Axis to bool")
    for pattern in ignore:
        if not any(fnmatchcase(a.id, pattern) for a in graph.axes):
            raise UsageError(f"ignore={pattern!r} matches no axis; there are {_names(graph.axes)}")

    def wanted(axis: Axis) -> bool:
        if not axis.prunable or axis.size < 2 or any(fnmatchcase(axis.id, p) for p in ignore):
            return False
        if callable(axes):
            return bool(axes(axis))
        return axis.kind in INNER_KINDS if axes == "inner" else True

    found = tuple(a for a in graph.axes if wanted(a))
    if not found:
        frozen = sorted({f"'{a.id}': {a.why}" for a in graph.axes if not a.prunable})
        why = f"; frozen are {'; '.join(frozen[:4])}" if frozen else ""
        raise ModelError(f"no axis to prune with axes={axes!r}, ignore={list(ignore)}{why}")
    return found


def widths_by_ratio(
    axes: Sequence[Axis], ratio: float | Mapping[str, float], align: int = 1, floor: int = 1
) -> dict[str, int]:
    """Kept positions per axis: `ratio` is the share removed, of every axis or by name pattern (the first that fits)."""
    table = ratio if isinstance(ratio, Mapping) else {"*": ratio}
    for pattern, share in table.items():
        if not isinstance(share, (int, float)) or not math.isfinite(share) or not 0 <= share <= 1:
            raise UsageError(
                f"ratio={share!r} for '{pattern}': give the share of positions to remove, from 0 to below 1"
            )
        if not any(fnmatchcase(a.id, pattern) for a in axes):
            raise UsageError(f"ratio names '{pattern}', which matches no axis; there are {_names(axes)}")
    check_positive(align=align, floor=floor)
    result = {}
    for axis in axes:
        share = next((s for p, s in table.items() if fnmatchcase(axis.id, p)), 0.0)
        keep = axis.size - math.floor(axis.size * share + 1e-9)
        if keep < floor:
            raise PlanError(
                f"cannot prune axis '{axis.id}' to {keep} of {axis.size} positions: at least {floor} must stay "
                f"(floor={floor}); lower ratio={share}"
            )
        result[axis.id] = aligned(keep, align, axis.size)
    return result


def aligned(keep: int, align: int, size: int) -> int:
    """`keep` rounded up to a multiple of `align`, at most `size`."""
    return min(size, -(-keep // align) * align)


def check_positive(**values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"{name}={value!r}: give a whole number of at least 1")


def widths_by_macs(
    graph: Graph,
    axes: Sequence[Axis],
    scores: Scores,
    share: float,
    align: int = 1,
    floor: int = 1,
    blocks: Sequence[str] = (),
) -> dict[str, int]:
    """Widths that bring the MACs down to `share` of the original at the least summed score, once `blocks` are gone.

    The knapsack over one axis at a time; the MACs that count are those of the whole network at those widths.
    """
    check_macs(share)
    check_positive(align=align, floor=floor)
    total = graph.macs()
    target = share * total
    choices = [_mac_choice(graph, a, scores, align, floor, blocks) for a in axes]
    fronts = allocate(choices) if choices else (Allocation(0.0, 0.0, {}),)
    fitting = [a for a in fronts if graph.macs(a.widths, blocks) <= target]
    if not fitting:
        raise unreachable(share, min(graph.macs(a.widths, blocks) for a in fronts) / total)
    return dict(min(fitting, key=lambda a: (a.error, -graph.macs(a.widths, blocks))).widths)


def check_macs(share: Any) -> float:
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise UsageError(f"macs={share!r}: give the share of the MACs to keep, above 0 and at most 1")
    return share


def unreachable(share: float, least: float) -> PlanError:
    """`least`: the share of the MACs that is left with every axis at its floor."""
    least = math.ceil(1000 * least) / 1000
    return PlanError(
        f"macs={share:g} cannot be reached: with these axes at their floor, {least:g} of the MACs are "
        f"left; ask for at least macs={least:g}, or prune more axes (axes='all')"
    )


def _mac_choice(graph: Graph, axis: Axis, scores: Scores, align: int, floor: int, blocks: Sequence[str] = ()) -> Choice:
    widths = candidate_widths(axis.size, align, floor)
    score = np.sort(scores.by_axis[axis.id])
    lost = np.concatenate([[0.0], np.cumsum(score)])
    errors = tuple(float(lost[axis.size - w]) for w in widths)
    return Choice(axis.id, widths, errors, tuple(float(graph.macs({axis.id: w}, blocks)) for w in widths))


def candidate_widths(size: int, align: int, floor: int = 1, most: int = MAX_WIDTHS) -> tuple[int, ...]:
    """Ascending multiples of `align` from `floor` to `size` (the size itself always), thinned evenly to `most`."""
    start = aligned(max(floor, 1), align, size)
    widths = sorted({*range(start, size + 1, align), size})
    if len(widths) > most:
        picks = np.unique(np.linspace(0, len(widths) - 1, most).round().astype(int))
        widths = [widths[i] for i in picks]
    return tuple(widths)


def plan_of(
    graph: Graph, widths: Mapping[str, int], order: Mapping[str, Sequence[int]], blocks: Sequence[str] = ()
) -> Plan:
    """Keep of every axis the positions that come last in its order of removal; `blocks` go."""
    sizes = {a.id: a.size for a in graph.axes}
    kept = {
        axis: tuple(sorted(int(p) for p in order[axis][sizes[axis] - width :]))
        for axis, width in widths.items()
        if width < sizes[axis]
    }
    return Plan(kept, graph.fingerprint, tuple(blocks))


def removal_order(scores: Scores) -> dict[str, list[int]]:
    """Positions by rising score, ties by position."""
    return {axis: np.argsort(score, kind="stable").tolist() for axis, score in scores.by_axis.items()}


def _names(axes: Sequence[Axis]) -> str:
    names = [f"'{a.id}'" for a in axes]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
