"""Where positions are compared with each other, and what makes scores of different axes comparable."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paretoprune.core.axis import Axis, Scores
from paretoprune.core.errors import PlanError, UsageError
from paretoprune.core.graph import Graph
from paretoprune.pipeline.choose import aligned, check_macs, check_positive, unreachable

Ranking = Literal["local", "global", "isomorphic"]
Normalise = Literal["none", "mean", "max", "sum-of-squares", "gaussian"]
STEPS = 4096
"""Shares that are told apart in the search for a share of the MACs."""

_BY: Mapping[str, Callable[[NDArray[np.float64]], float]] = {
    "mean": lambda s: float(s.mean()),
    "max": lambda s: float(s.max()),
    "sum-of-squares": lambda s: float(np.sqrt(np.square(s).sum())),
}


def check_ranking(ranking: Any, normalise: Any, ratio: Any, macs: Any) -> None:
    """Raises UsageError for a name that is not known and for what would have no effect."""
    if ranking is not None and ranking not in get_args(Ranking):
        raise UsageError(f"ranking={ranking!r}: give one of {', '.join(map(repr, get_args(Ranking)))}")
    if normalise is not None and normalise not in get_args(Normalise):
        raise UsageError(f"normalise={normalise!r}: give one of {', '.join(map(repr, get_args(Normalise)))}")
    if normalise is not None and (ranking == "local" or (ranking is None and macs is None)):
        raise UsageError(
            f"normalise={normalise!r} has no effect where every axis is ranked by itself: "
            "give ranking='global' or 'isomorphic', or leave it out"
        )
    if ranking in ("global", "isomorphic") and isinstance(ratio, Mapping):
        raise UsageError(f"ranking={ranking!r} takes one ratio for all axes: give a number, or ranking='local'")


def normalised(scores: Scores, how: Normalise) -> Scores:
    """Scores that stay >= 0 and in their order within an axis.

    "mean", "max" and "sum-of-squares" divide an axis's scores by that (the root of the last; Molchanov et al. 2017,
    section 2.2); an axis of zeros has ones, so that it does not go as a whole. "gaussian" is the standard score (score
    less mean, over deviation), moved up by the same amount in all axes.
    """
    if how == "none":
        return scores
    if how == "gaussian":
        standard = {a: (s - s.mean()) / (float(s.std()) or 1.0) for a, s in scores.by_axis.items()}
        least = min((float(s.min()) for s in standard.values()), default=0.0)
        return Scores({a: s - least for a, s in standard.items()}, scores.criterion)
    return Scores(
        {a: s / size if (size := _BY[how](s)) > 0 else np.ones_like(s) for a, s in scores.by_axis.items()},
        scores.criterion,
    )


def groups_of(ranking: Ranking | None, axes: Sequence[Axis], tensors: Mapping[str, Tensor]) -> list[list[Axis]]:
    """The axes that are ranked together.

    "isomorphic": of one kind, and standing in parameters of the same roles, dims and kernels (Fang et al. 2024, where
    sub-networks are grouped by their graph). Widths do not matter.
    """
    if ranking == "global":
        return [list(axes)] if axes else []
    groups: dict[Any, list[Axis]] = {}
    for axis in axes:
        groups.setdefault(_structure(axis, tensors) if ranking == "isomorphic" else axis.id, []).append(axis)
    return list(groups.values())


def _structure(axis: Axis, tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    shapes = [(m, tensors[m.name].shape) for m in axis.members if m.name in tensors]
    return (axis.kind, *sorted((m.role, m.dim, len(shape), tuple(shape[2:])) for m, shape in shapes))


def ranked_widths(
    graph: Graph,
    groups: Sequence[Sequence[Axis]],
    scores: Scores,
    ratio: float | Mapping[str, float] | None,
    macs: float | None,
    align: int = 1,
    floor: int = 1,
    blocks: Sequence[str] = (),
) -> dict[str, int]:
    """Kept positions per axis: the share `ratio` of each group's positions goes, or the least one that reaches `macs`.

    Kept widths are rounded up to `align`; what is removed never passes the share. Raises PlanError where the floors
    leave less to remove.
    """
    check_positive(align=align, floor=floor)
    if ratio is not None:
        return _widths(groups, scores, _checked_ratio(groups, ratio, align, floor), align, floor)
    return _widths_for_macs(graph, groups, scores, check_macs(macs), align, floor, blocks)


def _widths_for_macs(
    graph: Graph,
    groups: Sequence[Sequence[Axis]],
    scores: Scores,
    macs: float,
    align: int,
    floor: int,
    blocks: Sequence[str],
) -> dict[str, int]:
    """Bisection over the share: more of it never costs more."""
    total = graph.macs()

    def left(step: int) -> float:
        return graph.macs(_widths(groups, scores, step / STEPS, align, floor), blocks) / total

    if (least := left(STEPS)) > macs:
        raise unreachable(macs, least)
    low, high = -1, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= macs else (middle, high)
    return _widths(groups, scores, high / STEPS, align, floor)


def _widths(groups: Sequence[Sequence[Axis]], scores: Scores, share: float, align: int, floor: int) -> dict[str, int]:
    return {a: w for group in groups for a, w in _group_widths(group, scores, share, align, floor).items()}


def _group_widths(group: Sequence[Axis], scores: Scores, share: float, align: int, floor: int) -> dict[str, int]:
    """One threshold: positions go in the order of their scores until the share is reached."""
    free = {a.id: np.sort(scores.by_axis[a.id])[: a.size - _floor(a, align, floor)] for a in group}
    order = np.argsort(np.concatenate(list(free.values())), kind="stable")
    owner = np.repeat(np.arange(len(group)), [len(s) for s in free.values()])[order]
    target = math.floor(sum(a.size for a in group) * share + 1e-9)
    below = [0] * len(group)
    widths = [a.size for a in group]
    for i in owner.tolist():
        below[i] += 1
        width = aligned(group[i].size - below[i], align, group[i].size)
        target -= widths[i] - width
        if target < 0:
            break
        widths[i] = width
    return {a.id: w for a, w in zip(group, widths, strict=True)}


def _floor(axis: Axis, align: int, floor: int) -> int:
    return aligned(min(floor, axis.size), align, axis.size)


def _checked_ratio(groups: Sequence[Sequence[Axis]], ratio: Any, align: int, floor: int) -> float:
    if not isinstance(ratio, (int, float)) or not math.isfinite(ratio) or not 0 <= ratio <= 1:
        raise UsageError(f"ratio={ratio!r}: give the share of positions to remove, from 0 to below 1")
    for group in groups:
        size, least = sum(a.size for a in group), sum(_floor(a, align, floor) for a in group)
        if size - math.floor(size * ratio + 1e-9) < least:
            names = f"'{group[0].id}'" + (f" and {len(group) - 1} more axes" if len(group) > 1 else "")
            raise PlanError(
                f"ratio={ratio} of the {size} positions of {names} cannot go: {least} must stay (floor={floor}, "
                f"align={align}); give at most ratio={math.floor(1000 * (size - least) / size) / 1000:g}"
            )
    return ratio
