"""How a file serves: tails of the latency, throughput by batch size, and the first answer of a fresh process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Runner, Target
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.fresh import opener_of
from paretoprune.targets.interval import Floats, Series
from paretoprune.targets.load import LoadWatch
from paretoprune.targets.memory import cold_start

TAILS = (50, 95, 99)
BEYOND = 5
"""Calls that must lie beyond a percentile: of fewer calls it is left out, not guessed."""
CALLS = 1000
MAX_S = 5.0
"""Wall seconds for one batch size; at least MIN_CALLS are made."""
MIN_CALLS = 20
WARM_UP = 3
BLOCK = 10


def serving(
    target: Target,
    path: Path,
    sample: Mapping[str, NDArray[Any]],
    batches: Sequence[int],
    *,
    calls: int = CALLS,
    max_s: float = MAX_S,
) -> dict[str, Measurement]:
    """Wall times of single calls, one after the other: the user waits for the wall clock, neighbours included.

    By batch size b: "p50_ms_b", "p95_ms_b", "p99_ms_b" (ms per call) and "throughput_b" (samples per second). Also
    "cold_start_ms": load and first answer in a fresh process, its imports not counted. `sample`: one by input name.
    Raises UsageError for a batch size below 1, TargetError where the file does not take one.
    """
    sizes = list(dict.fromkeys(batches))
    if not sizes or any(not isinstance(b, int) or isinstance(b, bool) or b < 1 for b in sizes):
        raise UsageError(f"batches={list(batches)!r}: give whole numbers of at least 1")
    runner, found = target.load(path), dict[str, Measurement]()
    for size in sizes:
        feed = {name: np.repeat(array[:1], size, axis=0) for name, array in sample.items()}
        watch = LoadWatch()
        taken = _timed(runner, feed, calls, max_s)
        note = watch.note(target.threads)
        found |= {f"p{q}_ms_b{size}": m for q in TAILS if (m := percentile(taken, q, note)) is not None}
        found[f"throughput_b{size}"] = figure(Series(taken, partial(_per_second, size=size), BLOCK), "1/s", note)
    if (opener := opener_of(target)) is not None:
        found["cold_start_ms"] = cold_start(path, sample, opener=opener)
    mark = fingerprint_id(target.fingerprint())
    return {name: replace(value, target=mark) for name, value in found.items()}


def _timed(runner: Runner, feed: Mapping[str, NDArray[Any]], calls: int, max_s: float) -> Floats:
    """Milliseconds of each call."""
    for _ in range(WARM_UP):
        runner(feed)
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < calls:
        before = time.perf_counter()
        runner(feed)
        after = time.perf_counter()
        taken.append(1e3 * (after - before))
        if after - started > max_s and len(taken) >= MIN_CALLS:
            break
    return np.asarray(taken, dtype=np.float64)


def percentile(taken: Floats, q: int, note: str) -> Measurement | None:
    """Of calls in ms; None where too few lie beyond it."""
    if len(taken) * (100 - q) < 100 * BEYOND:
        return None
    return figure(Series(taken, partial(_percentile, q=q), BLOCK), "ms", note)


def _percentile(values: Floats, q: int) -> Floats:
    return np.asarray(np.percentile(values, q, axis=-1), dtype=np.float64)


def _per_second(values: Floats, size: int) -> Floats:
    return np.asarray(1e3 * size / values.mean(axis=-1), dtype=np.float64)


def figure(series: Series, unit: str, note: str) -> Measurement:
    low, high = series.interval()
    value = series.value()
    return Measurement(value, min(low, value), max(high, value), len(series.values), unit, "measured", "", note)
