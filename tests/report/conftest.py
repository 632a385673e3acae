"""Measured rows as a search would give them, quickly and without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paretoprune.core.candidate import Candidate
from paretoprune.core.front import Front
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.report import ReportData, RunFacts

AXES = {"layer1.conv1": 16, "layer2.conv1": 32, "fc": 8}
Make = Callable[..., Candidate]


def made(
    name: str,
    accuracy: float,
    latency: float,
    *,
    kept: dict[str, int] | None = None,
    precision: str = "fp32",
    original: bool = False,
) -> Candidate:
    speedup = 2.0 / latency
    taken = {
        "accuracy": Measurement(accuracy, accuracy - 0.01, accuracy + 0.005, 500, "share"),
        "latency_ms": Measurement(latency, latency * 0.97, latency * 1.02, 50, "ms"),
        "speedup": Measurement(speedup, speedup * 0.98, speedup * 1.02, 50, "x"),
        "energy_mj": Measurement(latency * 15, latency * 12, latency * 18, 50, "mJ", "estimated", note="15 W per core"),
        "size_bytes": Measurement.exact(latency * 400_000, "B"),
        "macs": Measurement.exact(latency * 20e6, "MACs"),
    }
    plan = Plan({axis: tuple(range(n)) for axis, n in (kept or {}).items()})
    return Candidate(name, plan, precision, Path(f"/runs/{name}.onnx"), taken, original=original)


@pytest.fixture
def make() -> Make:
    return made


@pytest.fixture
def front(make: Make) -> Front:
    rows = [
        make("original", 0.98, 2.0, original=True),
        make("original-int8", 0.979, 0.8, precision="int8"),
        make("half", 0.97, 1.0, kept={"layer1.conv1": 8, "layer2.conv1": 16}),
        make("half-int8", 0.969, 0.4, kept={"layer1.conv1": 8, "layer2.conv1": 16}, precision="int8"),
        make("small", 0.91, 0.3, kept={"layer1.conv1": 4, "layer2.conv1": 32}),
    ]
    limits = Limits.parse(["accuracy drop <= 2 points", "latency <= 0.5x", "size <= 9 MB"])
    return Front.of(rows, limits, target={"cpu": "a CPU", "runtime": "a runtime 1.0"})


@pytest.fixture
def data(front: Front) -> ReportData:
    facts = RunFacts(
        machine=front.target,
        method=(("Latency", "One thread.\nInterleaved."),),
        stages=(("search", 1.5), ("measure", 4.5)),
        notes=("1 journal line was set aside",),
        failures=(("out of memory", 2),),
    )
    return ReportData.of(front, "a run", AXES, "half-int8", facts)
