"""Energy: real counters where there are any, else estimates that say so. None means "not known"; it is not zero."""

from __future__ import annotations

import importlib
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Meter
from paretoprune.targets.interval import Series, low_quantile, median
from paretoprune.targets.macs import Workload

WATTS_PER_CORE = 3.5
WATTS_SOURCE = "Cloud Carbon Footprint methodology, average maximum of a vCPU on AWS, from SPECpower"
"""https://www.cloudcarbonfootprint.org/docs/methodology: a fully used virtual core. Declare your own where known."""

# Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9: 45 nm, 0.9 V, in pJ.
# Adds: int8 0.03, int32 0.1, fp16 0.4, fp32 0.9. Multiplies: int8 0.2, fp16 1.1, fp32 3.7.
# 64-bit reads: cache of 1 MB 100, DRAM 1300 to 2600.
PJ_PER_MAC: Mapping[str, float] = {"fp32": 3.7 + 0.9, "fp16": 1.1 + 0.9, "bf16": 1.1 + 0.9, "int8": 0.2 + 0.1}
"""A multiply and the add into its accumulator (32 bits wide)."""

PJ_PER_WEIGHT_BYTE = 1300 / 8
"""Weights come from DRAM once per inference (the low end of the table)."""

PJ_PER_ACTIVATION_BYTE = 100 / 8
"""Activations pass through a 1 MB cache."""

WINDOWS = 5


def meter_for(device: str = "cpu", watts_per_core: float = WATTS_PER_CORE) -> Meter:
    """Counters of `device` ("cpu", "cuda", "cuda:1") through zeus where installed and readable, else the estimate.

    Raises UsageError for a GPU without counters: CPU seconds say nothing about it.
    """
    meter = ZeusMeter.open(device)
    if meter is not None:
        return meter
    if device != "cpu":
        raise UsageError(f"no energy counter for {device!r}: install paretoprune[zeus] and check that NVML is readable")
    return CpuSecondsEstimate(watts_per_core)


class ZeusMeter:
    """Reads NVML (GPU) or RAPL (CPU packages) through `zeus`. Counts the whole package, idle power included."""

    def __init__(self, monitor: Any, device: str) -> None:
        self.name = f"zeus:{device}"
        self._monitor = monitor
        self._gpu = device != "cpu"

    @classmethod
    def open(cls, device: str = "cpu") -> ZeusMeter | None:
        """None where zeus is not installed or finds no counter for `device`."""
        index = _gpu_index(device)
        try:
            monitor_class = importlib.import_module("zeus.monitor").ZeusMonitor
        except ImportError:
            return None
        try:
            monitor = monitor_class(gpu_indices=[]) if index is None else monitor_class([index], cpu_indices=[])
        except (RuntimeError, ValueError, IndexError, OSError):
            return None
        found = monitor.cpu_indices if index is None else monitor.gpu_indices
        return cls(monitor, device) if found else None

    def measure(self, work: Callable[[], Any], runs: int) -> Measurement | None:
        """Energy per run in mJ: median of five windows of `runs` runs. None if the counter did not move."""
        joules = [self._window(work, runs) for _ in range(WINDOWS)]
        read = [value for value in joules if value]
        if len(read) < WINDOWS:
            return None
        series = Series(np.array(read, dtype=np.float64) * 1e3 / runs, median, 1)
        low, high = series.interval()
        note = f"{self.name} counters of the whole package, idle power and other processes included"
        return Measurement(series.value(), low, high, WINDOWS * runs, "mJ", "measured", note=note)

    def _window(self, work: Callable[[], Any], runs: int) -> float | None:
        self._monitor.begin_window("paretoprune", sync_execution=self._gpu)
        try:
            for _ in range(runs):
                work()
        finally:
            window = self._monitor.end_window("paretoprune", sync_execution=self._gpu)
        parts = window.gpu_energy if self._gpu else window.cpu_energy
        return float(sum(parts.values())) if parts else None


def _gpu_index(device: str) -> int | None:
    """0 for "cuda", 1 for "cuda:1", None for "cpu"."""
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise UsageError(f"device {device!r} is not known; use 'cpu', 'cuda' or 'cuda:1'")
    return int(found[1] or 0)


class CpuSecondsEstimate:
    """CPU seconds times a declared power per core. An estimate: it follows the latency and nothing else."""

    def __init__(
        self, watts_per_core: float = WATTS_PER_CORE, clock_ns: Callable[[], int] = time.process_time_ns
    ) -> None:
        if not (math.isfinite(watts_per_core) and watts_per_core > 0):
            raise UsageError(f"watts_per_core={watts_per_core}: it must be a number above zero")
        self.name = "cpu-seconds"
        self.watts_per_core = watts_per_core
        self._clock_ns = clock_ns

    @property
    def note(self) -> str:
        source = WATTS_SOURCE if self.watts_per_core == WATTS_PER_CORE else "as declared"
        return f"estimated: CPU seconds x {self.watts_per_core:g} W per core ({source})"

    def measure(self, work: Callable[[], Any], runs: int) -> Measurement | None:
        """Energy per run in mJ, from the 20th percentile of CPU time over `runs` runs."""
        work()
        times_ms = []
        for _ in range(runs):
            start = self._clock_ns()
            work()
            times_ms.append((self._clock_ns() - start) / 1e6)
        series = Series(np.array(times_ms, dtype=np.float64), low_quantile, 10)
        if not series.value() > 0:
            return None
        return self.of(Measurement(series.value(), *series.interval(), runs, "ms"))

    def of(self, cpu_ms: Measurement) -> Measurement:
        """The estimate that follows from a measured CPU time: ms x W = mJ."""
        low, high = cpu_ms.low * self.watts_per_core, cpu_ms.high * self.watts_per_core
        value = cpu_ms.value * self.watts_per_core
        return Measurement(value, low, high, cpu_ms.runs, "mJ", "estimated", cpu_ms.target, self.note)


class AnalyticEstimate:
    """MACs x pJ per MAC by precision, plus bytes x pJ per byte. It compares networks; no meter would read it."""

    def __init__(self, workload: Workload | None) -> None:
        self.name = "analytic"
        self.workload = workload

    def measure(self, work: Callable[[], Any] | None = None, runs: int = 1) -> Measurement | None:
        """Energy per run in mJ; `work` is not run. None where the work in the file is not known."""
        if self.workload is None:
            return None
        picojoules = (
            sum(PJ_PER_MAC[precision] * count for precision, count in self.workload.macs_by_precision.items())
            + PJ_PER_WEIGHT_BYTE * self.workload.weight_bytes
            + PJ_PER_ACTIVATION_BYTE * self.workload.activation_bytes
        )
        value = picojoules * 1e-9
        note = (
            "estimated: MACs and bytes x pJ at 45 nm (Horowitz, ISSCC 2014); weights from DRAM, activations from cache"
        )
        return Measurement(value, value, value, 1, "mJ", "estimated", note=note)
