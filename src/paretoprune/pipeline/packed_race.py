"""Which form of a layer is fastest on what the network gives it: dense, or one of the packed ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from paretoprune.sparsity.kernels import End, Grid
from paretoprune.sparsity.kernels.making import Layer, kernel_of
from paretoprune.sparsity.lowering import Site
from paretoprune.sparsity.operators import window_of
from paretoprune.sparsity.parts import Weight
from paretoprune.sparsity.storing import sparsity_of, stored, stored_int8
from paretoprune.targets.sparse_cpu import HowToPack

Array = NDArray[np.float32]
MIN_SPARSITY = 0.05
"""A weight with fewer zeros is left dense without a race."""
RACES = 7
RACE_MS = 3.0


@dataclass(frozen=True)
class Case:
    """One layer as it runs in the network, and what it is given."""

    site: Site
    x: Array


Rival = Callable[[Case], Callable[[], Any]]
"""A call that runs the same layer densely on the same input."""


@dataclass(frozen=True)
class Choice:
    """What became of one layer. Times are CPU milliseconds, taken in turns; None where there was no race.

    `why` a layer is left dense; empty for a packed one.
    """

    weight: str
    pattern: str
    sparsity: float
    why: str = ""
    dense_ms: float | None = None
    packed_ms: float | None = None

    @property
    def packed(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Option:
    """One packed form of a layer. `grid`: of its input, if its weights have 8 bits."""

    weight: Weight
    layer: Layer
    grid: tuple[float, ...] = ()

    @property
    def pattern(self) -> str:
        return f"{getattr(self.weight, 'pattern', 'signs')}{' int8' if self.grid else ''}"

    @property
    def pays(self) -> bool:
        """Is anything left out, or stored in fewer bits, that a race is worth it?"""
        return bool(self.grid) or self.pattern == "signs" or sparsity_of(self.weight) >= MIN_SPARSITY


def _options(site: Site, grid: Grid | None, threads: int) -> list[Option]:
    """The forms that a layer may take: in 8 bits where a grid is given, and in 32."""
    window, end = window_of(site.stride, site.padding) if site.image else None, End(site.bias)
    weight = stored(site.value)
    found = [Option(weight, kernel_of(weight, end, window, None, threads))]
    if grid is not None:
        whole = stored_int8(site.value)
        found.insert(0, Option(whole, kernel_of(whole, end, window, grid, threads), (grid.scale, float(grid.zero))))
    return found


def fastest(site: Site, x: Array | None, grid: Grid | None, how: HowToPack) -> tuple[Choice, Option | None]:
    """The fastest form, dense or packed; with `keep` "all" the first packed one."""
    if x is None:
        return Choice(site.weight, "", 0.0, "it is not reached, or not given float32"), None
    options = _options(site, grid, how.threads)
    if how.keep == "measured" and not any(o.pays for o in options):
        zeros = float((site.value == 0).mean())
        why = f"{zeros:.0%} of its weights are zeros, in no blocks that can be left out"
        return Choice(site.weight, options[0].pattern, sparsity_of(options[0].weight), why), None
    if how.keep == "all":
        return Choice(site.weight, options[0].pattern, sparsity_of(options[0].weight)), options[0]
    best, dense, least = _timed(site, x, [o for o in options if o.pays], how)
    choice = Choice(site.weight, best.pattern, sparsity_of(best.weight), "", dense, least)
    lost = least >= how.margin * dense
    return (replace(choice, why="the dense layer is as fast"), None) if lost else (choice, best)


def _timed(site: Site, x: Array, options: Sequence[Option], how: HowToPack) -> tuple[Option, float, float]:
    """(the fastest option, milliseconds of the dense layer and of it)"""
    known = next((c for c in how.known if c.weight == site.weight and c.dense_ms is not None), None)
    if known is not None:
        return next(o for o in options if o.pattern == known.pattern), known.dense_ms, known.packed_ms
    calls: list[Callable[[], Any]] = [how.rival(Case(site, x)), *(partial(o.layer, x) for o in options)]
    dense, *others = race(calls, how.threads)
    best, least = min(zip(options, others, strict=True), key=lambda pair: pair[1])
    return best, dense, least


def race(calls: Sequence[Callable[[], Any]], threads: int = 1) -> list[float]:
    """Smallest milliseconds of each call, taken in turns."""
    times = [max(1, math.ceil(RACE_MS / max(1e-3, _ms(call, 1, threads)))) for call in calls]
    taken = [[_ms(call, n, threads) for call, n in zip(calls, times, strict=True)] for _ in range(RACES)]
    return [min(column) for column in zip(*taken, strict=True)]


def _ms(call: Callable[[], Any], times: int, threads: int) -> float:
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    call()
    begun = clock()
    for _ in range(times):
        call()
    return (clock() - begun) / times / 1e6


def torch_layer(case: Case) -> Callable[[], Any]:
    site = case.site
    x, weight = torch.from_numpy(case.x), torch.from_numpy(site.value)
    bias = None if site.bias is None else torch.from_numpy(site.bias)

    def run() -> Tensor:
        with torch.no_grad():
            if site.image:
                return functional.conv2d(x, weight, bias, site.stride, site.padding)
            return functional.linear(x, weight, bias)

    return run
