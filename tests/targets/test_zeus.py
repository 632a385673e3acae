"""Counters through zeus, on monitors that answer as zeus's own classes do. No real counter is read here."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from paretoprune.core.errors import MeterError
from paretoprune.targets import ZeusReader


class Error(Exception):
    """zeus.exception.ZeusBaseError."""


@dataclasses.dataclass
class Apple:
    """zeus.device.soc.apple.AppleSiliconMeasurement, as far as it is read."""

    cpu_total_mj: int | None = None
    dram_mj: int | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    ane_mj: int | None = None


@dataclasses.dataclass
class Jetson:
    """zeus.device.soc.jetson.JetsonMeasurement."""

    cpu_energy_mj: float | None = None
    gpu_energy_mj: float | None = None
    total_energy_mj: float | None = None


class NVIDIAGPUs:
    """zeus.device.gpu.NVIDIAGPUs."""


class AMDGPUs:
    """zeus.device.gpu.AMDGPUs."""


def zone(name: str) -> Any:
    return SimpleNamespace(rapl_file=SimpleNamespace(name=name))


@dataclasses.dataclass
class Machine:
    """What zeus would find: joules per window by package, memory and GPU, and a chip's own measurement in mJ."""

    cpu: Mapping[int, float] = dataclasses.field(default_factory=dict)
    dram: Mapping[int, float] | None = None
    gpu: Mapping[int, float] = dataclasses.field(default_factory=dict)
    chip: Any = None
    zones: tuple[str, ...] = ("package-0", "package-1")
    gpus: Any = dataclasses.field(default_factory=NVIDIAGPUs)
    error: Exception | None = None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()

    class Monitor:
        """zeus.monitor.ZeusMonitor of 0.16."""

        def __init__(self, gpu_indices: Any = None, cpu_indices: Any = None) -> None:
            if found.error is not None:
                raise found.error
            self.gpu_indices = list(found.gpu) if gpu_indices is None else gpu_indices
            self.cpu_indices = list(found.cpu) if cpu_indices is None else cpu_indices
            if set(self.gpu_indices) - set(found.gpu):
                raise ValueError("No GPUs available.")
            self.cpus = SimpleNamespace(cpus=[zone(name) for name in found.zones])
            self.gpus = found.gpus
            self.open: set[str] = set()

        def begin_window(self, key: str, sync_execution: bool = True, restart: bool = False) -> None:
            if key in self.open:
                raise ValueError(f"Measurement window '{key}' already exists")
            self.open.add(key)

        def end_window(self, key: str, sync_execution: bool = True, cancel: bool = False) -> Any:
            self.open.remove(key)
            return SimpleNamespace(
                time=1.0,
                gpu_energy={i: found.gpu[i] for i in self.gpu_indices},
                cpu_energy={i: found.cpu[i] for i in self.cpu_indices} or None,
                dram_energy=found.dram if self.cpu_indices else None,
                soc_energy=found.chip,
            )

    monitor, exception = ModuleType("zeus.monitor"), ModuleType("zeus.exception")
    monitor.ZeusMonitor, exception.ZeusBaseError = Monitor, Error
    for name, module in {"zeus": ModuleType("zeus"), "zeus.monitor": monitor, "zeus.exception": exception}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def joules(device: str = "cpu") -> tuple[float, str]:
    """(of one window, what was read)."""
    reader = ZeusReader.open(device)
    assert reader is not None
    reader.begin()
    return reader.end().joules, reader.what


def test_packages_and_their_memory_are_summed_and_named(machine: Machine) -> None:
    machine.cpu, machine.dram = {0: 2.0, 1: 3.0}, {0: 0.25, 1: 0.5}
    assert joules() == (5.75, "CPU package 0, CPU package 1, DRAM 0, DRAM 1")


def test_a_machine_that_does_not_count_its_memory(machine: Machine) -> None:
    machine.cpu = {0: 2.0}
    assert joules() == (2.0, "CPU package 0")


def test_a_zone_of_the_whole_platform_is_not_counted_beside_the_package_in_it(machine: Machine) -> None:
    machine.cpu, machine.zones = {0: 2.0, 1: 9.0}, ("package-0", "psys")
    assert joules() == (2.0, "CPU package 0")


@pytest.mark.parametrize(("gpus", "name"), [(NVIDIAGPUs, "NVIDIAGPU"), (AMDGPUs, "AMDGPU")])
def test_one_gpu_and_nothing_else(machine: Machine, gpus: type, name: str) -> None:
    machine.cpu, machine.gpu, machine.gpus = {0: 2.0}, {0: 7.0, 1: 8.0}, gpus()
    assert joules("cuda") == (7.0, f"{name} 0")
    assert joules("cuda:1") == (8.0, f"{name} 1")
    assert joules("cpu") == (2.0, "CPU package 0")


def test_an_apple_chip_tells_the_cpu_and_the_memory(machine: Machine) -> None:
    machine.chip = Apple(cpu_total_mj=1500, dram_mj=250, gpu_mj=40, ane_mj=0)
    assert joules() == (pytest.approx(1.75), "CPU, DRAM of the Apple chip")


def test_a_jetson_tells_the_whole_board_or_else_a_rail(machine: Machine) -> None:
    machine.chip = Jetson(1000.0, 2000.0, 4500.0)
    assert joules("cpu") == joules("cuda") == (pytest.approx(4.5), "whole Jetson board")
    machine.chip = Jetson(1000.0, 2000.0)
    assert joules("cpu") == (pytest.approx(1.0), "CPU rail of the Jetson board")
    assert joules("cuda") == (pytest.approx(2.0), "GPU rail of the Jetson board")


def test_no_counter_is_no_meter(machine: Machine) -> None:
    assert ZeusReader.open("cpu") is None
    assert ZeusReader.open("cuda") is None
    machine.error = Error("no permission")
    assert ZeusReader.open("cpu") is None


def test_without_zeus_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert ZeusReader.open("cpu") is None


def test_a_device_that_zeus_does_not_know_has_no_meter(machine: Machine) -> None:
    machine.cpu, machine.gpu = {0: 2.0}, {0: 7.0}
    assert ZeusReader.open("cuda") is not None
    assert [ZeusReader.open(device) for device in ("tpu", "xpu:0", "cuda:x", "")] == [None] * 4


def test_a_counter_that_goes_away_says_so(machine: Machine) -> None:
    machine.cpu = {0: 2.0}
    reader = ZeusReader.open("cpu")
    assert reader is not None
    reader.begin()
    machine.cpu = {0: -2.0}
    with pytest.raises(MeterError, match="'zeus:cpu' ran backwards"):
        reader.end()
    reader.begin()
    machine.cpu = {}
    with pytest.raises(MeterError, match="failed with KeyError"):
        reader.end()


def test_the_fakes_have_what_zeus_has() -> None:
    """Where the extra is installed, its own classes have every name that is read here."""
    monitor = pytest.importorskip("zeus.monitor", reason="needs the extra zeus: pip install 'paretoprune[zeus]'")
    from zeus.device import gpu
    from zeus.device.soc import apple, jetson
    from zeus.exception import ZeusBaseError
    from zeus.monitor.energy import Measurement

    names = {field.name for field in dataclasses.fields(Measurement)}
    assert {"gpu_energy", "cpu_energy", "dram_energy", "soc_energy"} <= names
    for ours, theirs in ((Apple, apple.AppleSiliconMeasurement), (Jetson, jetson.JetsonMeasurement)):
        assert {f.name for f in dataclasses.fields(ours)} <= {f.name for f in dataclasses.fields(theirs)}
    assert gpu.NVIDIAGPUs.__name__ == "NVIDIAGPUs"
    assert gpu.AMDGPUs.__name__ == "AMDGPUs"
    assert issubclass(ZeusBaseError, Exception)
    assert callable(monitor.ZeusMonitor.begin_window)
