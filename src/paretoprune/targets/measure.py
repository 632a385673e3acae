"""Every figure of one exported file, taken on that file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from paretoprune.core.derived import with_derived
from paretoprune.core.errors import MeterError
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Target
from paretoprune.targets.energy import WATTS_PER_CORE, AnalyticEstimate, CpuSecondsEstimate
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.fresh import opener_of
from paretoprune.targets.latency import (
    Comparison,
    Latency,
    Make,
    Timing,
    Work,
    compare_fresh,
    measure_latency_fresh,
)
from paretoprune.targets.macs import workload_of_file
from paretoprune.targets.memory import peak_memory
from paretoprune.targets.metering import read_energy
from paretoprune.targets.meters import Reader
from paretoprune.targets.size import size_bytes
from paretoprune.targets.traits import timing_for
from paretoprune.targets.zeus import ZeusReader

Inputs = Mapping[str, NDArray[Any]]


def measure_file(
    target: Target,
    path: Path,
    inputs: Inputs,
    baseline_path: Path | None = None,
    *,
    timing: Timing | None = None,
    memory: bool = False,
    watts_per_core: float = WATTS_PER_CORE,
    meter: Reader | None = None,
) -> dict[str, Measurement]:
    """Measurements by name; a figure that could not be had is left out.

    "latency_ms", "cpu_ms", "wall_ms", "size_bytes", "energy_mj", "energy_analytic_mj", "macs"; with a baseline also
    "speedup" and "baseline_latency_ms" from the same interleaved run; with `memory` also "memory_bytes"; with a counter
    also "energy_gross_mj" and "idle_w"; and what follows from them (`core.derived`).
    `inputs` are one sample (batch 1) unless another size is meant. `meter` is read for the energy; without one the
    machine's own counters are where there are any. One that fails costs no other figure: the estimate stands in, and
    its note says why.
    """
    path = Path(path)
    mark = fingerprint_id(target.fingerprint())
    timing = timing or timing_for(target)
    make = maker(target, path, inputs)
    if getattr(target, "compiles", False):
        for file in (path,) if baseline_path is None else (path, baseline_path):
            maker(target, file, inputs)()()  # compiling is not to be timed, nor to use up the time for it
    found: dict[str, Measurement | None] = {}
    if baseline_path is None:
        latency = measure_latency_fresh(make, timing)
    else:
        pair = compare_files(target, baseline_path, path, inputs, timing)
        latency = pair.b
        found |= {"speedup": pair.ratio, "baseline_latency_ms": pair.a.latency_ms}
    found |= {"latency_ms": latency.latency_ms, "cpu_ms": latency.cpu_ms, "wall_ms": latency.wall_ms}
    found["size_bytes"] = size_bytes(path)
    found |= _energy(target, make, latency, watts_per_core, meter)
    found |= _analytic(path, inputs)
    if memory and (opener := opener_of(target)) is not None:
        found["memory_bytes"] = peak_memory(path, inputs, opener=opener)
    return with_derived({name: replace(value, target=mark) for name, value in found.items() if value is not None})


def compare_files(
    target: Target, baseline: Path, path: Path, inputs: Inputs, timing: Timing | None = None
) -> Comparison:
    """Two files in turns; `inputs` as arrays by name. See `latency.compare_fresh`."""
    return compare_fresh(maker(target, baseline, inputs), maker(target, path, inputs), timing)


def maker(target: Target, path: Path, inputs: Inputs) -> Make:
    """Loads the file anew with each call, and gives what runs it."""

    def make() -> Work:
        runner = target.load(path)
        bind = getattr(runner, "bind", None)
        return bind(inputs) if bind is not None else lambda: runner(inputs)

    return make


def _energy(
    target: Target, make: Make, latency: Latency, watts_per_core: float, meter: Reader | None
) -> dict[str, Measurement | None]:
    """From a meter where there is one, else estimated from the CPU time that was just measured."""
    device = str(getattr(target, "device", "cpu"))
    reader, lost = meter or ZeusReader.open(device), ""
    found: dict[str, Measurement | None] = {}
    if reader is not None:
        try:
            read = read_energy(reader, make(), target.threads)
        except MeterError as error:
            lost = str(error)
        else:
            found, lost = {"energy_gross_mj": read.gross_mj, "idle_w": read.idle_w}, read.lost
            if read.net_mj is not None:
                return {"energy_mj": read.net_mj, **found}
    if device != "cpu":
        return found  # CPU seconds say nothing of a GPU
    estimate = CpuSecondsEstimate(watts_per_core).of(latency.cpu_ms)
    return {"energy_mj": replace(estimate, note=f"{estimate.note}; {lost}" if lost else estimate.note), **found}


def _analytic(path: Path, inputs: Inputs) -> dict[str, Measurement | None]:
    if path.suffix != ".onnx":
        return {}
    workload = workload_of_file(path, {name: array.shape for name, array in inputs.items()})
    macs = None if workload is None else Measurement.exact(float(workload.macs), "MAC")
    return {"macs": macs, "energy_analytic_mj": AnalyticEstimate(workload).measure()}
