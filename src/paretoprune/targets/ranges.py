"""Ranges of activations by least squared error: rare large values are cut off where that serves the others.

Minima and maxima alone leave a step as coarse as the largest value of any sample asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from paretoprune.core.grid import Grid
from paretoprune.targets.qdq import layout_of, rewritten, tensors_in

Array = NDArray[Any]

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Of the range from minimum to maximum."""
BINS = 4096
"""Values are counted in bins of a sixteenth of a step: their error is known well enough."""


def narrow_ranges(fp32: Path, int8: Path, feeds: Iterable[Mapping[str, Array]]) -> None:
    """Give every activation of a file the share of its range that loses least, in place; zero points stay.

    Not the network's outputs: the largest score is the answer.
    """
    model = onnx.load(str(int8))
    every, outputs = layout_of(int8, skip=True).activations, {o.name for o in model.graph.output}
    whole = {g.name for t, g in every.items() if t in outputs}
    grids = {t: g for t, g in every.items() if g.name not in whole}
    if not grids:
        return
    counts = {g.name: np.zeros(BINS) for g in grids.values()}
    for feed in feeds:
        for tensor, value in tensors_in(fp32, grids, feed).items():
            grid = grids[tensor]
            counts[grid.name] += np.histogram(value, BINS, _ends(grid))[0]
    scales = {g.name: float(g.scale) * _best_share(counts[g.name], g) for g in grids.values()}
    onnx.save(rewritten(model, scales, {}, {}), str(int8))


def _ends(grid: Grid) -> tuple[float, float]:
    """Half a step beyond the first and the last value."""
    return tuple(float(grid.scale) * (w - grid.zero_point) for w in (grid.low - 0.5, grid.high + 0.5))  # type: ignore[return-value]


def _best_share(counts: Array, grid: Grid) -> float:
    if not counts.any():
        return 1.0
    low, high = _ends(grid)
    middles = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    # What lies on zero, as most of what a ReLU gives, is exact with any step.
    counts = np.where(np.abs(middles) < float(grid.scale) / 16, 0, counts)

    def error(share: float) -> float:
        step = float(grid.scale) * share
        whole = np.clip(np.rint(middles / step), grid.low - grid.zero_point, grid.high - grid.zero_point)
        # Values are spread over their bin, which matters where steps are hardly wider.
        within = np.minimum(step, (high - low) / BINS) ** 2 / 12
        return float((counts * ((middles - whole * step) ** 2 + within)).sum())

    return min(SHARES, key=error)
