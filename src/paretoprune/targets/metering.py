"""Energy of one inference by a meter: windows of work between windows of rest, whose power is subtracted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretoprune.core.errors import MeterError
from paretoprune.core.measurement import Measurement
from paretoprune.targets.interval import Series, median
from paretoprune.targets.load import LoadWatch
from paretoprune.targets.meters import Clock, Reader, Window

WINDOWS = 5
"""Of work; each stands between two of rest, so that a drift of the idle power cancels."""
MOST = 15
SPREAD = 0.5
"""Windows are added until the interval is at most so wide, relative to the value. That it leaves out zero does not end
it: who looks again until it does finds a load where there is none."""
SETTLE = 0.1
"""Share of a window that passes between work and rest unmeasured: clocks and supplies follow with a delay."""


@dataclass(frozen=True)
class Energy:
    """`net_mj` per inference, idle power subtracted; None, with the reason in `lost`, where nothing stands out of it.

    `gross_mj`: all that the meter saw. `idle_w`: its power while nothing ran.
    """

    net_mj: Measurement | None
    gross_mj: Measurement
    idle_w: Measurement
    lost: str = ""


def read_energy(
    reader: Reader,
    work: Callable[[], Any],
    threads: int = 1,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Energy of one call of `work`. Raises MeterError where the meter fails."""
    watch, runs = LoadWatch(), list[int]()

    def compute(seconds: float) -> int:
        """Calls that were made: at least one, and until the time is up."""
        calls, end = 0, clock() + seconds
        while not calls or clock() < end:
            work()
            calls += 1
        return calls

    def rest() -> Window:
        sleep(SETTLE * reader.window_s)
        return _window(reader, lambda: sleep(reader.window_s))

    def busy() -> Window:
        compute(SETTLE * reader.window_s)
        return _window(reader, lambda: runs.append(compute(reader.window_s)))

    idle, taken = [rest()], []
    while True:
        for _ in range(WINDOWS):
            taken.append(busy())
            idle.append(rest())
        _refuse_stuck(reader, idle, taken)
        found = _energy(reader, idle, taken, runs, watch.note(threads))
        net = found.net_mj
        if len(taken) >= MOST or (net is not None and net.high - net.low <= SPREAD * net.value):
            return found


def _window(reader: Reader, act: Callable[[], None]) -> Window:
    reader.begin()
    try:
        act()
    except BaseException:
        reader.cancel()
        raise
    return reader.end()


def _refuse_stuck(reader: Reader, idle: list[Window], taken: list[Window]) -> None:
    windows = [*idle, *taken]
    if any(window.seconds <= 0 for window in windows):
        raise MeterError(f"meter {reader.name!r} gave two readings at one moment; give it more time with period_s")
    watts = [window.joules / window.seconds for window in windows]
    if min(window.joules for window in taken) <= 0:
        raise MeterError(
            f"meter {reader.name!r} stood still while the network ran for {taken[-1].seconds:.2g} s: if it has a new "
            "reading less often, say so in its period_s"
        )
    if max(watts) - min(watts) <= 1e-9 * max(watts):
        raise MeterError(
            f"meter {reader.name!r} gave {watts[0]:.4g} W all the time, idle or not: it is stuck, too coarse, or does "
            "not see this machine"
        )


def _energy(reader: Reader, idle: list[Window], taken: list[Window], runs: list[int], busy: str) -> Energy:
    rest = np.array([window.joules / window.seconds for window in idle])
    seconds, joules = (np.array([getattr(window, name) for window in taken]) for name in ("seconds", "joules"))
    calls = np.array(runs, dtype=np.float64)
    around = (rest[:-1] + rest[1:]) / 2
    seen = f"{reader.name} ({reader.what})" if reader.what else reader.name
    also = "; ".join(text for text in (f"read from {seen}, other processes included", busy) if text)

    def figure(values: np.ndarray[Any, Any], unit: str, samples: int, note: str) -> Measurement:
        series = Series(np.asarray(values, dtype=np.float64), median, 1)
        return Measurement(series.value(), *series.interval(), samples, unit, "measured", note=f"{note}{also}")

    gross = figure(1e3 * joules / calls, "mJ", sum(runs), "idle power included, ")
    idle_w = figure(rest, "W", len(rest), "nothing running, ")
    net = figure(1e3 * (joules - around * seconds) / calls, "mJ", sum(runs), "idle power subtracted, ")
    if net.low > 0:
        return Energy(net, gross, idle_w)
    lost = f"what {reader.name} read did not stand out of the idle power ({net.low:.3g} to {net.high:.3g} mJ)"
    return Energy(None, gross, idle_w, lost)
