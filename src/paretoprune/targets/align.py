"""How wide a step the target's convolutions take: read off the target, never looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from paretoprune.core.layers import LayerSpec
from paretoprune.targets.cost import CostTable

PENALTY = 1.12
"""Cost over what a straight line gives, from which a width counts as lying just behind a step."""

TAKES = 3
"""Measurements of a width: the step is read once, and all widths of all searches follow it."""

PROBES: Mapping[int, tuple[int, ...]] = {
    32: (48,),
    16: (24, 40),
    8: (12, 20),
    4: (6, 10),
    2: (3, 5),
}
"""By step, widths half-way between two multiples of it. A true step makes each cost as much as the next multiple."""


@dataclass(frozen=True)
class Staircase:
    """`step`: kept widths should be multiples of it (1: any width is fine). `cost_ms` by width.

    `penalty` by step: median cost half-way between two multiples, over the mean of the two.
    """

    step: int
    cost_ms: Mapping[int, float]
    penalty: Mapping[int, float]


def staircase(table: CostTable, precision: str = "fp32") -> Staircase:
    """The largest step whose half-way widths are dearer than a straight line, on a 3x3 convolution of 64 channels.

    Steps are tried from 32 down: behind a step of 16, widths of 4 and 12 cost the same, so smaller ones do not show.
    """
    penalty: dict[int, float] = {}
    costs: dict[int, float] = {}

    def cost(width: int) -> float:
        if width not in costs:
            costs[width] = table.cost_ms(_probe(width), precision, TAKES)
        return costs[width]

    for step, widths in sorted(PROBES.items(), reverse=True):
        half = step // 2
        penalty[step] = float(np.median([2 * cost(w) / (cost(w - half) + cost(w + half)) for w in widths]))
        if penalty[step] > PENALTY:
            return Staircase(step, dict(sorted(costs.items())), penalty)
    return Staircase(1, dict(sorted(costs.items())), penalty)


def _probe(width: int) -> LayerSpec:
    return LayerSpec("conv", 64, width, kernel=(3, 3), padding=(1, 1), spatial=(16, 16))
