"""The hardware's own settings, when asked: every file that stands again with other threads and batches.

A setting changes no answer, so a file is judged once. Time and energy are those of one sample: of a batch, divided by
its samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paretoprune.core.derived import DERIVED, with_derived
from paretoprune.core.errors import PruneError, StoreError, UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Target
from paretoprune.pipeline import artefact
from paretoprune.pipeline.study import Study
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import TARGETS, Clock, Timing, compare_fresh, fingerprint_id, measure_file
from paretoprune.targets.energy import WATTS_PER_CORE
from paretoprune.targets.feeds import array_of, resized, signature_of
from paretoprune.targets.latency import Work

OF_A_SETTING = (
    *("latency_ms", "speedup", "wall_ms", "cpu_ms", "baseline_latency_ms", "memory_bytes"),
    *("energy_mj", "energy_gross_mj", "idle_w", *DERIVED),
)
"""What is taken again, or left out; all other figures are the file's."""


def settings_of(study: Study) -> list[tuple[int, int]]:
    """(threads, batch) beside that of the search itself."""
    settings = study.settings
    threads = settings.tune_threads or (settings.threads,)
    every = [(t, b) for t in threads for b in settings.tune_batch or (1,)]
    return [pair for pair in dict.fromkeys(every) if pair != (settings.threads, 1)]


def tune(study: Study) -> None:
    """A record for each file at each setting; what fails at one is recorded as a failure."""
    asked = settings_of(study)
    files = {n: r for n, r in study.folder.all("candidate").items() if "batch" not in r}
    if not asked:
        return
    with study.progress.stage("hardware settings", len(files) * len(asked)) as bar:
        for name, record in files.items():
            for threads, batch in asked:
                key = f"{name}@{threads}t-b{batch}"
                if not study.folder.has("candidate", key) and not study.folder.has("failure", key):
                    _take(study, key, record, threads, batch)
                bar.advance(note=key)


def _take(study: Study, key: str, record: Mapping[str, Any], threads: int, batch: int) -> None:
    setting = {"original": False, "threads": threads, "batch": batch}
    try:
        with study.timed("hardware settings"):
            figures = measure(study, {**record, **setting})
    except StoreError:
        raise
    except PruneError as error:
        study.folder.record("failure", key, {"cause": str(error), "type": type(error).__name__})
        return
    kept = {k: m for k, m in record["measurements"].items() if k not in OF_A_SETTING}
    figures = with_derived({k: Measurement.from_json(m) for k, m in kept.items()} | figures)
    taken = {k: m.to_json() for k, m in figures.items()}
    study.folder.record("candidate", key, {**record, **setting, "measurements": taken})


def measure(study: Study, record: Mapping[str, Any], steady: bool = False) -> dict[str, Measurement]:
    """Figures of one sample at a record's setting, timed in turns with the original at the search's own.

    The original is called as often as the batch has samples, so that both do the same work. Wall time with several
    threads, since the CPU time of one does not show what the others did.
    """
    threads, batch = int(record["threads"]), int(record["batch"])
    target, one, many = with_threads(study.target, threads), batch_of(study, 1), batch_of(study, batch)
    timing = artefact.timing(target if threads > study.settings.threads else study.target)
    original = study.folder.artefact((study.folder.done("candidate", "original") or {})["file"])
    file = study.folder.artefact(record["file"])

    def baseline() -> Work:
        runner = study.target.load(original)
        return lambda: [runner(one) for _ in range(batch)]

    def setting() -> Work:
        runner = target.load(file)
        return lambda: runner(many)

    pair = compare_fresh(baseline, setting, artefact.longer(timing) if steady else timing)
    watts = study.settings.watts_per_core or WATTS_PER_CORE
    read = measure_file(target, file, many, timing=_of_all_threads(timing), watts_per_core=watts, meter=study.meter)
    found = {
        "latency_ms": divided(pair.b.latency_ms, batch),
        "wall_ms": divided(pair.b.wall_ms, batch),
        "baseline_latency_ms": divided(pair.a.latency_ms, batch),
        **{key: divided(read[key], batch) for key in ("energy_mj", "energy_gross_mj") if key in read},
        **{key: read[key] for key in ("idle_w",) if key in read},
    }
    mark = fingerprint_id(target.fingerprint())
    return {name: replace(value, target=mark) for name, value in ({"speedup": pair.ratio} | found).items()}


def _of_all_threads(timing: Timing) -> Timing:
    """The CPU time of the whole process: the energy estimate goes by it."""
    return replace(timing, clock=Clock())


def divided(given: Measurement, samples: int) -> Measurement:
    return replace(given, value=given.value / samples, low=given.low / samples, high=given.high / samples)


def with_threads(target: Target, threads: int) -> Target:
    """Raises UsageError for a user's own target, whose threads are its own affair."""
    if threads == target.threads:
        return target
    if target.name not in TARGETS or type(target) is not type(find_target(target.name)):
        raise UsageError(
            f"tune_threads: the threads of target {target.name!r} are its own; tune_batch alone is possible"
        )
    return find_target(target.name, threads)


def batch_of(study: Study, samples: int) -> dict[str, Any]:
    """The one sample that is timed, so many times."""
    signature, tensors = signature_of(study.one)
    rows = zip(signature.names, tensors, signature.batched, strict=True)
    return {name: array_of(resized(tensor, samples) if batched else tensor) for name, tensor, batched in rows}
