"""How wide a step the target's convolutions take: read off the target, never looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from paretoprune.core.layers import LayerSpec
from paretoprune.targets.cost import CostTable

PENALTY = 1.12
"""Cost over what a straight line gives, from which a width counts as lying just behind a step."""

TAKES = 3
"""Of every probe: three widths one after the other, since what disturbs a machine for seconds disturbs all three."""

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
    """`step`: kept widths should be multiples of it (1: any width is fine). `cost_ms` by width; empty where the step
    was known already.

    `penalty` by step: median cost half-way between two multiples, over the mean of the two.
    """

    step: int
    cost_ms: Mapping[int, float]
    penalty: Mapping[int, float]


def staircase(table: CostTable, precision: str = "fp32") -> Staircase:
    """The largest step whose half-way widths are dearer than a straight line, as what a 3x3 convolution gives or reads.

    Steps are tried from 32 down: behind a step of 16, widths of 4 and 12 cost the same, so smaller ones do not show.
    """
    if precision in table.steps:
        return Staircase(table.steps[precision], {}, {})
    penalty: dict[int, float] = {}
    costs: dict[int, list[float]] = {}
    step = 1
    for wide, widths in sorted(PROBES.items(), reverse=True):
        taken = [
            max(_penalty(table, make, w, wide // 2, precision, costs) for make in (_probe, _behind))
            for w in widths
            for _ in range(TAKES)
        ]
        penalty[wide] = float(np.median(taken))
        if penalty[wide] > PENALTY:
            step = wide
            break
    table.steps[precision] = step
    return Staircase(step, {w: float(np.median(ms)) for w, ms in sorted(costs.items())}, penalty)


def _penalty(
    table: CostTable,
    make: Callable[[int], LayerSpec],
    width: int,
    half: int,
    precision: str,
    costs: dict[int, list[float]],
) -> float:
    widths = (width - half, width, width + half)
    low, middle, high = taken = [table.take_ms(make(w), precision) for w in widths]
    if make is _probe:
        for w, ms in zip(widths, taken, strict=True):
            costs.setdefault(w, []).append(ms)
    return 2 * middle / (low + high)


def _probe(width: int) -> LayerSpec:
    return LayerSpec("conv", 64, width, kernel=(3, 3), padding=(1, 1), spatial=(16, 16))


def _behind(width: int) -> LayerSpec:
    """The layer that reads the channels: a runtime may leave its fast layout for an odd number of them."""
    return LayerSpec("conv", width, 64, kernel=(3, 3), padding=(1, 1), spatial=(16, 16))
