"""Counters of the machine through `zeus`: NVML and AMD SMI (GPUs), RAPL (CPUs), Apple silicon, Jetson boards."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paretoprune.core.errors import MeterError
from paretoprune.targets.meters import ANSWER_S, Asking, Clock, Window

CPU_WINDOW_S = 0.2
"""RAPL counts every millisecond."""
GPU_WINDOW_S = 1.0
"""NVML's count moves every 20 to 100 ms."""
BOARD_WINDOW_S = 1.0
"""Zeus samples the sensors of a Jetson every 100 ms."""

_KEY = "paretoprune"
_DEVICE = re.compile(r"cuda(?::(\d+))?")
_POWERCAP = Path("/sys/class/powercap/intel-rapl")

# What a processor with everything on one chip tells of each part, in mJ, by the fields of zeus's own classes.
_ON_CHIP: Mapping[str, tuple[Sequence[tuple[str, str]], ...]] = {
    "cpu": (
        (("total_energy_mj", "whole Jetson board"),),
        (("cpu_energy_mj", "CPU rail of the Jetson board"),),
        (("cpu_total_mj", "CPU"), ("dram_mj", "DRAM of the Apple chip")),
    ),
    "gpu": (
        (("total_energy_mj", "whole Jetson board"),),
        (("gpu_energy_mj", "GPU rail of the Jetson board"),),
        (("gpu_mj", "GPU"), ("gpu_sram_mj", "its SRAM"), ("dram_mj", "DRAM of the Apple chip")),
    ),
}
"""Of each tuple of parts, the first of which something is there is summed."""

Parts = list[tuple[str, float]]
"""(name, joules)."""


class ZeusReader:
    """A `zeus.monitor.ZeusMonitor` as a Reader. `what` names the counters that it found."""

    def __init__(self, monitor: Any, device: str, clock: Clock = time.perf_counter) -> None:
        self.name = f"zeus:{device}"
        self._monitor, self._clock = monitor, clock
        self._index = _gpu_index(device)
        self._ask = Asking(self.name, ANSWER_S)
        self._count, self._start = 0, 0.0
        self._packages = [i for i in monitor.cpu_indices if not _whole_platform(monitor, i)]
        self.window_s = self._window_s()
        self.what = ""

    @classmethod
    def open(cls, device: str = "cpu") -> ZeusReader | None:
        """None where zeus is not installed or finds no counter for `device` ("cpu", "cuda", "cuda:1", or another)."""
        index = _gpu_index(device)
        if index is None and device != "cpu":
            return None
        with contextlib.redirect_stdout(io.StringIO()):  # libraries of other vendors print what they miss
            return cls._opened(device, index)

    @classmethod
    def _opened(cls, device: str, index: int | None) -> ZeusReader | None:
        try:
            monitor_class = importlib.import_module("zeus.monitor").ZeusMonitor
            known: type[Exception] = importlib.import_module("zeus.exception").ZeusBaseError
        except (ImportError, AttributeError):
            return None
        # The GPU of one chip with the CPU is no GPU to zeus: it is found where none is asked for.
        asked: list[tuple[list[int], list[int] | None]] = [([], None)] if index is None else [([index], []), ([], [])]
        for gpus, cpus in asked:
            try:
                reader = cls(monitor_class(gpus, cpus), device)
                reader.begin()
                reader.what = ", ".join(name for name, _ in reader._end()[1])
            except (known, MeterError, RuntimeError, ValueError, LookupError, OSError):
                continue
            if reader.what:
                return reader
        return None

    def begin(self) -> None:
        self._count += 1
        key = f"{_KEY} {self._count}"
        self._start = self._ask(lambda: self._timed(self._monitor.begin_window, key)[0])

    def end(self) -> Window:
        seconds, parts = self._end()
        if not parts:
            raise MeterError(f"meter {self.name!r} has no counter any more")
        if any(joules < 0 for _, joules in parts):
            raise MeterError(f"meter {self.name!r} ran backwards")
        return Window(seconds, sum(joules for _, joules in parts))

    def cancel(self) -> None:
        """The next window has another key."""

    def _end(self) -> tuple[float, Parts]:
        key = f"{_KEY} {self._count}"
        now, window = self._ask(lambda: self._timed(self._monitor.end_window, key))
        return now - self._start, self._parts(window)

    def _timed(self, call: Callable[..., Any], key: str) -> tuple[float, Any]:
        """(moment, answer). Zeus's own clock is the time of day, and is not read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of a counter that did not move; we refuse that
            found = call(key, sync_execution=self._index is not None and _torch_has_cuda())
        return self._clock(), found

    def _parts(self, window: Any) -> Parts:
        on_chip = getattr(window, "soc_energy", None)
        if self._index is not None:
            gpus = window.gpu_energy or {}
            kind = type(getattr(self._monitor, "gpus", None)).__name__.removesuffix("s")
            return [(f"{kind} {i}", float(joules)) for i, joules in gpus.items()] or _on_chip(on_chip, "gpu")
        cpus, memory = (
            {i: float(joules) for i, joules in (found or {}).items() if i in self._packages}
            for found in (window.cpu_energy, getattr(window, "dram_energy", None))
        )
        parts = [(f"CPU package {i}", joules) for i, joules in cpus.items()]
        return parts + [(f"DRAM {i}", joules) for i, joules in memory.items()] or _on_chip(on_chip, "cpu")

    def _window_s(self) -> float:
        if self._index is not None:
            return GPU_WINDOW_S
        return CPU_WINDOW_S if self._packages else BOARD_WINDOW_S


def _on_chip(measurement: Any, kind: str) -> Parts:
    for fields in _ON_CHIP[kind]:
        found = [(label, getattr(measurement, field, None)) for field, label in fields]
        parts = [(label, 1e-3 * float(mj)) for label, mj in found if mj is not None]
        if parts:
            return parts
    return []


def _whole_platform(monitor: Any, index: int) -> bool:
    """Whether a zone of RAPL is "psys", which holds the packages and would count them twice."""
    try:
        zone = monitor.cpus.cpus[index].rapl_file.name
    except (AttributeError, LookupError, TypeError):
        try:
            zone = (_POWERCAP / f"intel-rapl:{index}" / "name").read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return False
    return str(zone) == "psys"


def _torch_has_cuda() -> bool:
    """What was run on the GPU by torch may not be done yet; zeus then waits for it."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _gpu_index(device: str) -> int | None:
    """0 for "cuda", 1 for "cuda:1", None for "cpu". GPUs of AMD are called "cuda" by torch, too."""
    found = _DEVICE.fullmatch(device)
    return int(found[1] or 0) if found else None
