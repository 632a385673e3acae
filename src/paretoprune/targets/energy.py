"""The two estimates of energy where there is no counter. Both say so. None means "not known"; it is not zero."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.targets.interval import Series, low_quantile
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
