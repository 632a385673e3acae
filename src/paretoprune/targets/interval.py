"""Confidence intervals by resampling (Efron and Tibshirani 1993, percentile method)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps (..., samples) to (...)."""

DRAWS = 1000
LEVEL = (0.025, 0.975)


def median(values: Floats) -> Floats:
    return np.asarray(np.median(values, axis=-1), dtype=np.float64)


def middle_mean(values: Floats) -> Floats:
    """The mean of the middle half: nearly as deaf to a burst as the median, and steadier."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1), dtype=np.float64)


def low_quantile(values: Floats) -> Floats:
    """The 20th percentile: deaf to interruptions above it, and to a few lucky samples below it."""
    return np.asarray(np.quantile(values, 0.2, axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class Series:
    """Samples in the order they were taken, and what is asked of them.

    Runs of `block` neighbours share a loaded copy of the network and the mood of the machine.
    """

    values: Floats
    statistic: Statistic
    block: int

    def value(self) -> float:
        return float(self.statistic(self.values))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """95 % interval: the wider of the bootstraps over single samples and over blocks, which are not independent."""
        rng = np.random.default_rng(seed)
        spans = [_resampled(self.values, 1, self.statistic, rng)]
        if len(self.values) >= 5 * self.block:
            spans.append(_resampled(self.values, self.block, self.statistic, rng))
        return min(low for low, _ in spans), max(high for _, high in spans)

    def spread(self, seed: int = 0) -> float:
        """Width of the interval, relative to the value."""
        low, high = self.interval(seed)
        return (high - low) / self.value()


def _resampled(values: Floats, block: int, statistic: Statistic, rng: np.random.Generator) -> tuple[float, float]:
    blocks = values[: len(values) // block * block].reshape(-1, block)
    chosen = blocks[rng.integers(0, len(blocks), (DRAWS, len(blocks)))].reshape(DRAWS, -1)
    low, high = np.quantile(statistic(chosen), LEVEL)
    return float(low), float(high)
