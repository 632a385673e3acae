"""From a network to a file that was exported, verified, validated, tested and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.core.precision import MIXED, carrier
from paretoprune.core.protocols import Target
from paretoprune.pipeline import why
from paretoprune.pipeline.exporting import write
from paretoprune.pipeline.judged import judge
from paretoprune.pipeline.mixed import mixed_bits
from paretoprune.pipeline.study import Study
from paretoprune.pipeline.verifying import Verified, verify_file
from paretoprune.targets import Clock, Timing, measure_file
from paretoprune.targets.energy import WATTS_PER_CORE
from paretoprune.targets.feeds import feed_of
from paretoprune.targets.traits import suffix_of, timing_for

INT8_SAMPLES = 256
SAMPLE_MS = 1.0
"""A timed sample lasts at least this long; more pairs tell more than longer ones."""
PAIRS, MAX_CPU_S = 20, 0.2
"""Per candidate. On a noisy machine the interval stays wider instead of the search longer."""
STEADY_PAIRS, STEADY_CPU_S = 50, 1.5
"""For the original and, at the end, for the members of the front."""


def finish(study: Study, name: str, network: str, precision: str, load: Callable[[], nn.Module], plan: Plan) -> None:
    """Export `load()` as `members/<name>.onnx` (or what the target's files end in) and record every figure of it, once.

    The test set is read here, once per file: what is recorded was final before.
    """
    if study.folder.has("candidate", name):
        return
    member = file_of(study, name)
    file = study.folder.artefact(member)
    file.parent.mkdir(parents=True, exist_ok=True)
    with study.timed("export"):
        plan = with_bits(study, load(), plan, precision)
        export(study, name, load(), file, precision, plan.bits)
        study.folder.seal(member)
    verified = verify(study, file, load(), precision)
    widths = {axis: len(kept) for axis, kept in plan.kept.items()}
    figures = measure(study, name, file, widths=widths, blocks=plan.blocks, steady=name == "original")
    if verified.memory is not None:
        figures["memory_bytes"] = replace(verified.memory, target=figures["latency_ms"].target)
    figures["parameters"] = Measurement.exact(study.traced.parameters(widths, plan.blocks), "parameter")
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
            "file": member,
            "plan": plan.to_json(),
            "measurements": {k: m.to_json() for k, m in figures.items()},
            "original": name == "original",
            "absent": judged.absent,
            "verified": verified.to_json(),
            "classes": judged.classes,
        },
    )


def export(
    study: Study,
    name: str,
    module: nn.Module,
    file: Path,
    precision: str,
    bits: Mapping[str, str] | None = None,
    samples: int = INT8_SAMPLES,
) -> None:
    """Write and check a file, and record whether all of it was exported or an earlier one was cut, and why."""
    inputs = study.calibration_inputs(samples)
    write(study.exporter, module, study.one, file, carrier(precision), inputs, bits)
    if study.exporter is not study.target:
        why = study.templates.why
        study.folder.record("export", name, {"how": "full" if why else "cut", "why": why}, replace=True)


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


def file_of(study: Study, name: str) -> str:
    return f"members/{name}{suffix_of(study.target)}"


def measure(
    study: Study,
    name: str,
    file: Path,
    widths: Mapping[str, int] | None = None,
    blocks: Sequence[str] = (),
    *,
    memory: bool = False,
    steady: bool = True,
) -> dict[str, Measurement]:
    """Latency against the fp32 original, interleaved with it; size, energy, MACs, and memory if asked.

    MACs are counted in an ONNX file; of another file they are the graph's with these widths, where they are given, and
    without these blocks.
    `steady`: with the time that a member of the front is worth.
    """
    baseline = study.folder.artefact(file_of(study, "original"))
    with study.timed("measure"):
        figures = measure_file(
            study.target,
            file,
            feed_of(study.one),
            None if name == "original" else baseline,
            timing=longer(timing(study.target)) if steady else timing(study.target),
            memory=memory,
            watts_per_core=study.settings.watts_per_core or WATTS_PER_CORE,
            meter=study.meter,
        )
    if study.target.threads == 1 and not hasattr(study.target, "clock"):
        del figures["cpu_ms"]  # it is the latency itself
    if file.suffix != ".onnx" and widths is not None:
        count = float(study.traced.macs(widths, blocks))
        macs = Measurement.exact(count, "MAC", figures["latency_ms"].target, "of the traced graph")
        figures["macs"] = macs
    if name == "original":
        figures["speedup"] = replace(Measurement.exact(1.0, "x"), target=figures["latency_ms"].target)
    return figures


def timing(target: Target) -> Timing:
    """One thread: the CPU time of the calling thread, so that progress bars do not count. Several: wall time.

    A target with a clock of its own, a GPU's, is timed by that.
    """
    clock = {"clock": Clock(cpu_ns=time.thread_time_ns)} if target.threads == 1 else {}
    return timing_for(target, pairs=PAIRS, min_sample_ms=SAMPLE_MS, max_cpu_s=MAX_CPU_S, **clock)


def longer(short: Timing) -> Timing:
    return replace(short, pairs=min(STEADY_PAIRS, short.max_pairs), max_cpu_s=STEADY_CPU_S)


def predictor(study: Study, file: Path) -> Callable[[Example], Any]:
    """The exported file as a function of a batch."""
    runner = study.target.load(file)
    return lambda inputs: runner(feed_of(inputs))
