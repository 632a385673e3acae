"""How busy the rest of the machine was while something was measured."""

from __future__ import annotations

import time

import psutil


class LoadWatch:
    """Started with the measurement; `note()` at its end."""

    def __init__(self) -> None:
        self._machine = _busy_s()
        self._own = time.process_time()
        self._start = time.perf_counter()

    def busy_cores(self) -> float:
        """Cores that other processes used since the start, on average."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        return max(0.0, (_busy_s() - self._machine - (time.process_time() - self._own)) / elapsed)

    def note(self, threads: int = 1) -> str:
        """A warning if other processes used more than the cores that the measurement left free, else empty."""
        cores = psutil.cpu_count() or 1
        busy = self.busy_cores()
        if busy <= max(0, cores - threads) + 0.1:
            return ""
        return f"busy machine: other processes used {busy:.1f} of {cores} cores while measuring"


def _busy_s() -> float:
    """CPU seconds of the whole machine since it started, idle and waiting time left out."""
    times = psutil.cpu_times()
    fields = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, field, 0.0) for field in fields))
