"""The volume that a front dominates, exactly, in any number of objectives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def hypervolume(points: Points, reference: Points) -> float:
    """Volume between `points` (n, objectives; all minimised) and `reference` (objectives,).

    By slicing objectives: cut along the last one, and the slabs are problems with one objective less (While et al.,
    "A faster algorithm for calculating hypervolume", IEEE TEVC 2006, section III). O(n^(objectives - 1) log n).
    Points that are not below the reference in every objective add nothing.
    """
    inside = points[(points < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if reference.size == 1:
        return float(reference[0] - inside.min())
    if reference.size == 2:
        return _area(inside, reference)
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    ends = np.append(inside[1:, -1], reference[-1])
    thickness = ends - inside[:, -1]
    return float(
        sum(depth * hypervolume(inside[: i + 1, :-1], reference[:-1]) for i, depth in enumerate(thickness) if depth > 0)
    )


def _area(points: Points, reference: Points) -> float:
    """A sweep from left to right over the staircase."""
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(points[:, 1])
    widths = np.append(points[1:, 0], reference[0]) - points[:, 0]
    return float((widths * (reference[1] - lowest)).sum())
