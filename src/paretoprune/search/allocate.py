"""The exact front of a separable problem: a multiple-choice knapsack for every budget at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Choice, FloatArray
from paretoprune.search.space import Space


@dataclass(frozen=True)
class Allocation:
    """Widths by axis id with their predicted cost and error."""

    cost: float
    error: float
    widths: Mapping[str, int]


def allocate(choices: Sequence[Choice], cap: int = 4096) -> tuple[Allocation, ...]:
    """Every allocation that no other beats in both cost and error, cheapest first.

    Errors add up, and so do savings: the cost is the original's minus what each axis saves alone. The last width of
    a Choice is the whole axis, so its cost is the original's in every Choice.

    Dominated pairs are dropped while axes are merged one by one (Nemhauser & Ullmann, "Discrete dynamic programming
    and capital allocation", Management Science 15, 1969; Kellerer et al., "Knapsack Problems", 2004, ch. 11). Sums
    are never rounded, so no cost is understated. The result is exact while no merge leaves more than `cap` points;
    beyond, the best point in each of `cap` equal steps of cost stays, so that an allocation may cost up to
    (axes / cap) of the cost range more than the best one of the same error.
    """
    space = Space(choices)
    original = _original_cost(space.choices)
    cost, error = np.array([original]), np.array([0.0])
    picks: list[NDArray[np.int64]] = []
    for choice in space.choices:
        saved = np.asarray(choice.cost) - original
        cost, error, chosen, parent = _merge(cost, error, saved, np.asarray(choice.error), cap)
        picks = [earlier[parent] for earlier in picks]
        picks.append(chosen)
    keys = np.stack(picks, axis=1).tolist()
    return tuple(
        Allocation(float(c), float(e), space.widths(tuple(key))) for c, e, key in zip(cost, error, keys, strict=True)
    )


def spread(front: Sequence[Allocation], count: int) -> list[Allocation]:
    """About `count` of them, evenly in log cost from the cheapest to the last, ends included, cheapest first.

    For each budget the best allocation within it; where a gap in the front leaves fewer, the widest gaps are filled.
    """
    if count < 1:
        raise UsageError(f"{count} allocations were asked for; there must be at least 1")
    if len(front) <= count:
        return list(front)
    if count == 1:
        return [front[0]]
    costs = np.array([a.cost for a in front])
    # The sum of savings can exceed the original's cost where axes meet in one layer: no logarithm there.
    log_cost = np.log(np.maximum(costs, costs[-1] * 1e-3))
    budgets = np.linspace(log_cost[0], log_cost[-1], count)
    within = np.searchsorted(log_cost, budgets + 1e-12, side="right") - 1
    chosen = _fill({0, len(front) - 1, *(int(i) for i in within)}, log_cost, count)
    return [front[i] for i in sorted(chosen)]


def _original_cost(choices: Iterable[Choice]) -> float:
    first, *others = choices
    original = float(first.cost[-1])
    if original <= 0:
        raise UsageError(f"choice of axis {first.axis!r}: the whole axis costs {original}; it must be above 0")
    for other in others:
        if abs(other.cost[-1] - original) > 1e-6 * original:
            raise UsageError(
                f"the original costs {original} by the choice of axis {first.axis!r} but {other.cost[-1]} by that of "
                f"{other.axis!r}: a Choice's last width must be the whole axis, its costs the whole network's"
            )
    return original


def _merge(
    cost: FloatArray, error: FloatArray, more_cost: FloatArray, more_error: FloatArray, cap: int
) -> tuple[FloatArray, FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """(cost, error, width chosen for this axis, index of the point that it extends) of the merged front."""
    total_cost = (cost[:, None] + more_cost[None, :]).ravel()
    total_error = (error[:, None] + more_error[None, :]).ravel()
    order = np.lexsort((total_error, total_cost))
    lowest = np.minimum.accumulate(total_error[order])
    stays = order[np.append(True, lowest[1:] < lowest[:-1])]
    if len(stays) > cap:
        stays = _thin(stays, total_cost[stays], cap)
    parent, chosen = np.divmod(stays, len(more_cost))
    return total_cost[stays], total_error[stays], chosen, parent


def _thin(stays: NDArray[np.int64], cost: FloatArray, cap: int) -> NDArray[np.int64]:
    """The last (lowest error) point in each equal step of cost, and the cheapest point."""
    steps = np.floor((cost - cost[0]) / (cost[-1] - cost[0]) * (cap - 1))
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    thinned: NDArray[np.int64] = stays[last]
    return thinned


def _fill(chosen: set[int], log_cost: FloatArray, count: int) -> set[int]:
    """Add the point that is farthest from all chosen ones until there are `count`."""
    while len(chosen) < count:
        ends = np.array(sorted(chosen))
        distance = np.abs(log_cost[:, None] - log_cost[ends][None, :]).min(axis=1)
        distance[ends] = -1.0
        chosen.add(int(distance.argmax()))
    return chosen
