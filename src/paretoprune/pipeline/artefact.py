"""From a network to a file that was exported, verified, validated, tested and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.core.precision import MIXED, carrier
from paretoprune.pipeline import why
from paretoprune.pipeline.exporting import write
from paretoprune.pipeline.judged import judge
from paretoprune.pipeline.mixed import mixed_bits
from paretoprune.pipeline.study import Study
from paretoprune.pipeline.verifying import Verified, verify_file
from paretoprune.targets import Clock, Timing, measure_file
from paretoprune.targets.energy import WATTS_PER_CORE
from paretoprune.targets.feeds import feed_of

INT8_SAMPLES = 256
SAMPLE_MS = 1.0
"""A timed sample lasts at least this long; more pairs tell more than longer ones."""
MAX_CPU_S = 1.5
"""Per file. On a noisy machine the interval stays wider instead of the search longer."""


def finish(study: Study, name: str, network: str, precision: str, load: Callable[[], nn.Module], plan: Plan) -> None:
    """Export `load()` as `members/<name>.onnx` and record every figure of it, once.

    The test set is read here, once per file: what is recorded was final before.
    """
    if study.folder.has("candidate", name):
        return
    file = study.folder.artefact(f"members/{name}.onnx")
    file.parent.mkdir(parents=True, exist_ok=True)
    with study.timed("export"):
        plan = with_bits(study, load(), plan, precision)
        inputs = study.calibration_inputs(INT8_SAMPLES)
        write(study.target, load(), study.one, file, carrier(precision), inputs, plan.bits)
        study.folder.seal(f"members/{name}.onnx")
    verified = verify(study, file, load(), precision)
    figures = measure(study, name, file)
    if verified.memory is not None:
        figures["memory_bytes"] = replace(verified.memory, target=figures["latency_ms"].target)
    widths = {axis: len(kept) for axis, kept in plan.kept.items()}
    figures["parameters"] = Measurement.exact(study.traced.parameters(widths), "parameter")
    with study.timed("evaluate"):
        judged = judge(study, predictor(study, file), load, name)
    figures |= judged.figures
    why.record_cuts(study, network, plan)
    study.folder.record(
        "candidate",
        name,
        {
            "network": network,
            "precision": precision,
            "file": f"members/{name}.onnx",
            "plan": plan.to_json(),
            "measurements": {k: m.to_json() for k, m in figures.items()},
            "original": name == "original",
            "absent": judged.absent,
            "verified": verified.to_json(),
            "classes": judged.classes,
        },
    )


def with_bits(study: Study, module: nn.Module, plan: Plan, precision: str) -> Plan:
    """The plan with the layers that mixed precision leaves in fp32; bits are of the file, not of the network."""
    if precision != MIXED:
        return plan
    with study.timed("sensitivity"):
        bits = mixed_bits(study.target, module, study.one, list(study.calibration_inputs(INT8_SAMPLES)))
    return replace(plan, bits={**plan.bits, **bits})


def verify(study: Study, file: Path, module: nn.Module, precision: str) -> Verified:
    """The sealed file, read by a fresh process, on the first validation batches. One that is wrong is deleted."""
    batches = study.checked.data.validation
    try:
        with study.timed("verify"):
            return verify_file(
                study.target, file, module, batches, precision, task=study.task, sample=feed_of(study.one)
            )
    except TargetError:
        file.unlink(missing_ok=True)
        raise


def measure(study: Study, name: str, file: Path, memory: bool = False) -> dict[str, Measurement]:
    """Latency against the fp32 original, interleaved with it; size, energy, MACs, and memory if asked."""
    baseline = study.folder.artefact("members/original.onnx")
    with study.timed("measure"):
        figures = measure_file(
            study.target,
            file,
            feed_of(study.one),
            None if name == "original" else baseline,
            timing=timing(study.target.threads),
            memory=memory,
            watts_per_core=study.settings.watts_per_core or WATTS_PER_CORE,
            meter=study.meter,
        )
    if study.target.threads == 1:
        del figures["cpu_ms"]  # it is the latency itself
    if name == "original":
        figures["speedup"] = replace(Measurement.exact(1.0, "x"), target=figures["latency_ms"].target)
    return figures


def timing(threads: int) -> Timing:
    """One thread: the CPU time of the calling thread, so that progress bars do not count. Several: wall time."""
    if threads == 1:
        return Timing(min_sample_ms=SAMPLE_MS, max_cpu_s=MAX_CPU_S, clock=Clock(cpu_ns=time.thread_time_ns))
    return Timing(min_sample_ms=SAMPLE_MS, max_cpu_s=MAX_CPU_S, basis="wall")


def predictor(study: Study, file: Path) -> Callable[[Example], Any]:
    """The exported file as a function of a batch."""
    runner = study.target.load(file)
    return lambda inputs: runner(feed_of(inputs))
