"""The two estimates."""

from __future__ import annotations

import pytest

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.targets import AnalyticEstimate, CpuSecondsEstimate, Workload


def test_cpu_seconds_times_watts():
    ticks = iter(range(0, 10**12, 3_000_000))
    found = CpuSecondsEstimate(10.0, clock_ns=lambda: next(ticks)).measure(lambda: None, 20)
    assert found.value == pytest.approx(3.0 * 10.0)
    assert (found.status, found.unit) == ("estimated", "mJ")
    assert "10 W per core" in found.note


def test_the_estimate_follows_a_measured_time():
    cpu_ms = Measurement(2.0, 1.9, 2.2, 50, "ms", target="mark")
    found = CpuSecondsEstimate().of(cpu_ms)
    assert (found.low, found.value, found.high) == pytest.approx((1.9 * 3.5, 7.0, 2.2 * 3.5))
    assert found.target == "mark"
    assert "Cloud Carbon Footprint" in found.note


@pytest.mark.parametrize("watts", [0.0, -1.0, float("nan"), float("inf")])
def test_watts_must_be_a_number_above_zero(watts):
    with pytest.raises(UsageError, match="watts_per_core"):
        CpuSecondsEstimate(watts)


def test_the_analytic_model_by_hand():
    workload = Workload({"fp32": 1000, "int8": 2000}, weight_bytes=80, activation_bytes=40)
    found = AnalyticEstimate(workload).measure()
    picojoules = 1000 * (3.7 + 0.9) + 2000 * (0.2 + 0.1) + 80 * 1300 / 8 + 40 * 100 / 8
    assert found.value == pytest.approx(picojoules * 1e-9)
    assert found.status == "estimated"
    assert "Horowitz" in found.note


def test_unknown_work_has_no_estimate():
    assert AnalyticEstimate(None).measure() is None
