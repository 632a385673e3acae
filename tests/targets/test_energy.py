from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.targets import AnalyticEstimate, CpuSecondsEstimate, Workload, ZeusMeter, meter_for


class FakeMonitor:
    """Behaves like zeus.monitor.ZeusMonitor where every piece of work costs 2 J."""

    joules = 2.0
    packages = (0,)

    def __init__(self, gpu_indices=None, cpu_indices=None) -> None:
        self.gpu_indices = gpu_indices if gpu_indices is not None else []
        self.cpu_indices = list(self.packages) if cpu_indices is None else cpu_indices
        self.open: list[str] = []

    def begin_window(self, key: str, sync_execution: bool = True) -> None:
        assert key not in self.open
        self.open.append(key)
        self.work = 0

    def end_window(self, key: str, sync_execution: bool = True):
        self.open.remove(key)
        cpu = dict.fromkeys(self.cpu_indices, self.joules * FakeMonitor.done) or None
        gpu = dict.fromkeys(self.gpu_indices, self.joules * FakeMonitor.done)
        FakeMonitor.done = 0
        return SimpleNamespace(gpu_energy=gpu, cpu_energy=cpu)

    done = 0


def work() -> None:
    FakeMonitor.done += 1


@pytest.fixture
def zeus(monkeypatch):
    module = ModuleType("zeus.monitor")
    module.ZeusMonitor = FakeMonitor
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.monitor", module)
    FakeMonitor.done = 0
    return monkeypatch


@pytest.fixture
def no_zeus(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)


@pytest.mark.usefixtures("zeus")
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_counters_are_read_in_millijoules_per_run(device):
    read = meter_for(device).measure(work, 10)
    assert (read.value, read.unit, read.status) == (pytest.approx(2000.0), "mJ", "measured")
    assert read.runs == 50
    assert "counters" in read.note


def test_a_counter_that_does_not_move_reads_as_none_not_zero(zeus):
    zeus.setattr(FakeMonitor, "joules", 0.0)
    assert meter_for("cpu").measure(work, 10) is None


def test_zeus_without_a_counter_falls_back_to_the_estimate(zeus):
    zeus.setattr(FakeMonitor, "packages", ())
    assert ZeusMeter.open("cpu") is None
    assert isinstance(meter_for("cpu"), CpuSecondsEstimate)


@pytest.mark.usefixtures("no_zeus")
def test_a_gpu_without_counters_is_not_estimated_from_cpu_seconds():
    with pytest.raises(UsageError, match=r"paretoprune\[zeus\]"):
        meter_for("cuda")
    with pytest.raises(UsageError, match="'tpu'"):
        meter_for("tpu")


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
