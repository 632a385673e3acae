"""The latency protocol: interleaved pairs, process CPU time, an interval that is extended until it is narrow.

Wall time on a shared machine has the sign of a difference wrong every fourth time; CPU time of one thread does not
count the neighbours. Two networks are run there and back (A B, B A), so that drift, and what each leaves in the cache
for the next, cancel.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.targets.interval import Floats, Series, low_quantile, median, middle_mean
from paretoprune.targets.load import LoadWatch

Work = Callable[[], Any]
Make = Callable[[], Work]
Basis = Literal["cpu", "wall"]

BLOCK = 10
"""Pairs that share one loaded copy; then the networks are loaded again."""

RESOLUTION = 0.01
"""Relative half-width added (in quadrature) to every interval: copies of one file differ by about so much."""

LOAD_LUCK = 0.03
"""By which one load of a file differs from another, in the ratio of a block; the mean of n blocks by 1/√n of it.

Seen with ResNet-56: which of two equal files is loaded last runs 2 to 3 % faster for that block.
"""


@dataclass(frozen=True)
class Clock:
    """Both monotonic, in nanoseconds. The time of day is never read: it jumps."""

    cpu_ns: Callable[[], int] = time.process_time_ns
    wall_ns: Callable[[], int] = time.perf_counter_ns


@dataclass(frozen=True)
class Timing:
    """How long to measure.

    `margin`: the relative difference that should show. Sampling goes on until its 95 % interval is at most half of
    that wide, `max_pairs` were taken or `max_cpu_s` CPU seconds are spent (never fewer than 10 pairs). A sample
    repeats its call until it lasts `min_sample_ms`. `basis` is "wall" for runtimes with several threads.
    """

    margin: float = 0.05
    pairs: int = 50
    max_pairs: int = 400
    max_cpu_s: float = 20.0
    min_sample_ms: float = 2.0
    basis: Basis = "cpu"
    seed: int = 0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        for name in ("margin", "max_cpu_s", "min_sample_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name}={value}: it must be a number above zero")
        if not BLOCK <= self.pairs <= self.max_pairs:
            raise UsageError(f"pairs={self.pairs}, max_pairs={self.max_pairs}: expected {BLOCK} <= pairs <= max_pairs")


@dataclass(frozen=True)
class Samples:
    """Milliseconds per call, one entry per sample, in the order they were taken."""

    cpu_ms: Floats
    wall_ms: Floats


@dataclass(frozen=True)
class Latency:
    """`latency_ms`: 20th percentile on the chosen basis. `cpu_ms` likewise of CPU time. `wall_ms`: median wall time."""

    latency_ms: Measurement
    cpu_ms: Measurement
    wall_ms: Measurement
    samples: Samples


@dataclass(frozen=True)
class Comparison:
    """`a` is the baseline. `ratio`: mean of the middle half of the paired ratios a / b; above 1, b is faster.

    Blocks in which a was loaded first and those in which b was count alike.
    """

    a: Latency
    b: Latency
    ratio: Measurement


def compare(run_a: Work, run_b: Work, timing: Timing | None = None, target: str = "") -> Comparison:
    """Time two calls against each other; `run_a` is the baseline. `target` is the fingerprint to note."""
    return compare_fresh(lambda: run_a, lambda: run_b, timing, target)


def compare_fresh(make_a: Make, make_b: Make, timing: Timing | None = None, target: str = "") -> Comparison:
    """As `compare`, but each call is made again every ten pairs, so that luck with memory placement averages out."""
    timing, watch = timing or Timing(), LoadWatch()
    samples = _sample((make_a, make_b), timing, lambda taken: _ratio(taken, timing))
    note = watch.note()
    a, b = (_latency(each, timing, target, note) for each in samples)
    blocks = max(1, len(samples[0].cpu_ms) // BLOCK)
    floor = max(RESOLUTION, LOAD_LUCK / math.sqrt(blocks))
    return Comparison(a, b, _measurement(_ratio(samples, timing), "x", timing, target, note, floor))


def measure_latency(run: Work, timing: Timing | None = None, target: str = "") -> Latency:
    return measure_latency_fresh(lambda: run, timing, target)


def measure_latency_fresh(make: Make, timing: Timing | None = None, target: str = "") -> Latency:
    timing, watch = timing or Timing(), LoadWatch()
    (samples,) = _sample((make,), timing, lambda taken: _low(_on(taken[0], timing)))
    return _latency(samples, timing, target, watch.note())


def _sample(
    makers: tuple[Make, ...], timing: Timing, series: Callable[[tuple[Samples, ...]], Series]
) -> tuple[Samples, ...]:
    """One `Samples` per maker, all of one length, until the interval of `series` is narrow enough."""
    rounds: list[Floats] = []
    goal, started = timing.pairs, timing.clock.cpu_ns()
    while True:
        while 2 * len(rounds) < goal:
            taken = 2 * len(rounds)
            if taken % BLOCK == 0:
                if taken and _spent(taken // BLOCK, (timing.clock.cpu_ns() - started) / 1e9, len(makers), timing):
                    return _collect(rounds)
                timers = _load(makers, timing, last_first=taken // BLOCK % 2 == 1)
            rounds.append(_there_and_back(timers))
        samples = _collect(rounds)
        if goal >= timing.max_pairs or series(samples).spread(timing.seed) <= timing.margin / 2:
            return samples
        goal = min(timing.max_pairs, goal + max(BLOCK, goal // 2))


def _spent(blocks: int, seconds: float, networks: int, timing: Timing) -> bool:
    """Would more take longer than it may? Two networks are loaded first and last in turns, so as many more blocks as
    make it even; after an odd number that is done unless it takes far too long."""
    if networks == 1:
        return seconds > timing.max_cpu_s
    more, most_s = (2, timing.max_cpu_s) if blocks % 2 == 0 else (1, 3 * timing.max_cpu_s)
    return seconds * (blocks + more) / blocks > most_s


def _load(makers: tuple[Make, ...], timing: Timing, last_first: bool) -> dict[int, Timer]:
    """Warmed-up calls by position. The order of loading alternates: what is loaded first tends to lie better."""
    order = sorted(range(len(makers)), reverse=last_first)
    works = {i: makers[i]() for i in order}
    return {i: Timer(works[i], timing) for i in order}


def _there_and_back(timers: dict[int, Timer]) -> Floats:
    """(2 passes, networks, [cpu, wall]) in ms. Begins with what was loaded first."""
    there = {i: timer() for i, timer in timers.items()}
    back = {i: timers[i]() for i in reversed(timers)}
    return np.array([[row[i] for i in sorted(timers)] for row in (there, back)], dtype=np.float64)


def _collect(rounds: list[Floats]) -> tuple[Samples, ...]:
    """Rounds that a clock spoilt are left out. Raises TargetError if they are the most."""
    sound = [each for each in rounds if (each > 0).all()]
    if 2 * len(sound) <= len(rounds):
        lost = len(rounds) - len(sound)
        raise TargetError(f"the clock stood still or ran backwards in {lost} of {len(rounds)} rounds; measure again")
    table = np.concatenate(sound)
    return tuple(Samples(table[:, i, 0], table[:, i, 1]) for i in range(table.shape[1]))


class Timer:
    """A warmed-up call; each use gives (cpu, wall) milliseconds per call of one sample."""

    def __init__(self, work: Work, timing: Timing) -> None:
        self._work, self._clock, self.calls = work, timing.clock, 1
        least_ms = max(timing.min_sample_ms, 100e3 * time.get_clock_info("process_time").resolution)
        self()
        once_ms = max(self())
        if once_ms < least_ms:
            once_ms = min(once_ms, *(max(self()) for _ in range(3)))
            self.calls = min(100_000, math.ceil(least_ms / once_ms)) if once_ms > 0 else 1
            self()

    def __call__(self) -> tuple[float, float]:
        work, clock = self._work, self._clock
        if self.calls > 1:
            work()  # brings its own data back into the cache
        wall, cpu = clock.wall_ns(), clock.cpu_ns()
        for _ in range(self.calls):
            work()
        cpu_ns, wall_ns = clock.cpu_ns() - cpu, clock.wall_ns() - wall
        return cpu_ns / self.calls / 1e6, wall_ns / self.calls / 1e6


def _on(samples: Samples, timing: Timing) -> Floats:
    return samples.cpu_ms if timing.basis == "cpu" else samples.wall_ms


def _low(values: Floats) -> Series:
    return Series(values, low_quantile, BLOCK)


def _ratio(pair: tuple[Samples, ...], timing: Timing) -> Series:
    """One ratio per round, there and back summed.

    Those of blocks in which `a` was loaded first are off in one direction, the others in the other: the truth is the
    geometric mean of both centres, and each ratio is moved from its own centre to that.
    """
    a, b = (_on(samples, timing).reshape(-1, 2).sum(axis=1) for samples in pair)
    rounds, half = a / b, BLOCK // 2
    last_first = np.arange(len(rounds)) // half % 2 == 1
    if last_first.any():
        centres = [float(middle_mean(rounds[which])) for which in (~last_first, last_first)]
        rounds = rounds / np.where(last_first, centres[1], centres[0]) * math.sqrt(centres[0] * centres[1])
    return Series(rounds, middle_mean, half)


def _latency(samples: Samples, timing: Timing, target: str, note: str) -> Latency:
    return Latency(
        _measurement(_low(_on(samples, timing)), "ms", timing, target, note),
        _measurement(_low(samples.cpu_ms), "ms", timing, target, note),
        _measurement(Series(samples.wall_ms, median, BLOCK), "ms", timing, target, note),
        samples,
    )


def _measurement(
    series: Series, unit: str, timing: Timing, target: str, note: str, resolution: float = RESOLUTION
) -> Measurement:
    value, (low, high) = series.value(), series.interval(timing.seed)
    floor = resolution * value
    low, high = value - math.hypot(value - low, floor), value + math.hypot(high - value, floor)
    return Measurement(value, low, high, len(series.values), unit, "measured", target, note)
