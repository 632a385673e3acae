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
        return _widest(self.draws(np.random.default_rng(seed)))

    def draws(self, rng: np.random.Generator) -> list[Floats]:
        """What the statistic is on resampled values: one row for each way to do it."""
        found = [_resampled(self.values, 1, self.statistic, rng)]
        if len(self.values) >= 5 * self.block:
            found.append(_resampled(self.values, self.block, self.statistic, rng))
        return found

    def spread(self, seed: int = 0) -> float:
        """Width of the interval, relative to the value."""
        low, high = self.interval(seed)
        return (high - low) / self.value()


@dataclass(frozen=True)
class Balanced:
    """Two series of one ratio that are off in opposite directions; the truth is their geometric mean."""

    one: Series
    other: Series

    @property
    def values(self) -> Floats:
        return np.concatenate([self.one.values, self.other.values])

    def value(self) -> float:
        return float(np.sqrt(self.one.value() * self.other.value()))

    def interval(self, seed: int = 0) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        one, other = self.one.draws(rng), self.other.draws(rng)
        return _widest([np.sqrt(a * b) for a in one for b in other])

    def spread(self, seed: int = 0) -> float:
        low, high = self.interval(seed)
        return (high - low) / self.value()


def _resampled(values: Floats, block: int, statistic: Statistic, rng: np.random.Generator) -> Floats:
    blocks = values[: len(values) // block * block].reshape(-1, block)
    chosen = blocks[rng.integers(0, len(blocks), (DRAWS, len(blocks)))].reshape(DRAWS, -1)
    return statistic(chosen)


def _widest(draws: list[Floats]) -> tuple[float, float]:
    spans = [np.quantile(each, LEVEL) for each in draws]
    return float(min(low for low, _ in spans)), float(max(high for _, high in spans))
