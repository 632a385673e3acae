"""`pp.search` and `pp.auto_prune`: from a trained network to a measured Pareto front."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.candidate import Candidate
from paretoprune.core.data import Data
from paretoprune.core.errors import LimitError, PruneError, StoreError, UnreachableLimitError, UsageError
from paretoprune.core.front import Front
from paretoprune.core.limits import Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.core.progress import NoProgress, Progress
from paretoprune.core.protocols import Meter, Target, Task
from paretoprune.pipeline import candidates, choose, confirm, explore, hardware, level_choices, results, space, together
from paretoprune.pipeline.artefact import export, measure
from paretoprune.pipeline.opening import opened as as_module
from paretoprune.pipeline.preflight import check_metrics, check_parts
from paretoprune.pipeline.put_zeros import put_zeros
from paretoprune.pipeline.settings import Settings, settings_of
from paretoprune.pipeline.study import Study, identity
from paretoprune.pipeline.swaps import check_swaps, with_swaps
from paretoprune.pipeline.targets import find_target
from paretoprune.pipeline.threads import free_threads
from paretoprune.store.run import RunFolder
from paretoprune.targets import open_meter
from paretoprune.targets.traits import suffix_of
from paretoprune.tasks import check_data, task_of


def search(
    model: nn.Module,
    example: Any,
    data: Data,
    *,
    task: str | Task = "classification",
    target: str | Target = "onnxruntime",
    device: str = "cpu",
    limits: Sequence[str] = (),
    budget: str = "20 min",
    out: str | Path | None = None,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    progress: Progress | None = None,
    meter: str | Meter | None = None,
    **options: Any,
) -> Front:
    """Search for the best trade-offs of `model` under `limits`, each exported and measured on `target`.

    `data.validation` judges candidates; `data.test` is read once per exported file. `options` are the fields of
    `Settings`. `out` is the run folder (default: a new one under runs/); a second call with the same arguments resumes
    it. Recovery runs on `device`, measuring on the CPU. `meter` reads the energy, as in `pp.measure`. Raises
    UnreachableLimitError, with the front kept in `out`, when no member meets the limits; AllCandidatesFailedError,
    DataError, ModelError, StoreError and others before.
    """
    settings = settings_of(limits, budget, **options)
    if "precisions" not in options:
        settings = _offered(settings, target)
    if settings.zeros is None:
        usual = level_choices.usual_of(find_target(target, settings.threads), settings.precisions)
        settings = replace(settings, zeros=usual or None)
    level_choices.checked(settings.zeros or (), find_target(target, settings.threads), settings.nested)
    study = _open(model, example, data, task, target, device, settings, out, dynamic, progress or NoProgress(), meter)
    with study.folder:
        return run(study)


def _offered(settings: Settings, target: str | Target) -> Settings:
    """Without a word on precisions, those of the default that the target has."""
    has = find_target(target, settings.threads).precisions
    return replace(settings, precisions=tuple(p for p in settings.precisions if p in has or p == "fp32"))


def run(study: Study) -> Front:
    """All stages; what the folder holds already is not done again."""
    started = time.perf_counter()
    candidates.originals(study)
    _refuse_unjudgeable(study)
    results.front_of(study.folder)  # an objective that is only estimated here is refused now, not at the end
    with free_threads():
        options = space.build(study)
    _refuse_unreachable(study, options)
    chosen = study.once("chosen", "widths", lambda: [dict(w) for w in explore.explore(study, options)])
    chosen, swaps = with_swaps(study, options, chosen)
    steps = candidates.steps_within(study, len(chosen), started)
    if study.settings.nested and steps:
        with free_threads():
            together.recover_together(study, options, chosen, steps)
    candidates.carry_out_all(study, options, chosen, steps, started, swaps)
    hardware.tune(study)
    confirm.confirm(study)
    front = results.front_of(study.folder)
    if unmet := front.unmet():
        raise UnreachableLimitError(f"{unmet}; every measured network is kept in {study.folder.path}")
    return front


def auto_prune(
    model: nn.Module,
    data: Data,
    *,
    target_size: str | None = None,
    target_latency: str | None = None,
    target_energy: str | None = None,
    target_accuracy: str | None = None,
    search: str = "knapsack",
    keep_ratio: float | None = None,
    step: int | None = None,
    example: Any = None,
    **options: Any,
) -> Candidate:
    """The fastest member that meets the targets, e.g. target_latency="5 ms", target_accuracy="90 %".

    Without a target, the knee of the front. `keep_ratio`: least share of positions kept of every axis. `step`: kept
    widths are multiples of it (default: the runtime's own). Other keywords go to `pp.search`.
    """
    limits = [
        f"{metric} {sign} {value}"
        for metric, sign, value in (
            ("size", "<=", target_size),
            ("latency", "<=", target_latency),
            ("energy", "<=", target_energy),
            ("accuracy", ">=", target_accuracy),
        )
        if value is not None
    ]
    if keep_ratio is not None:
        options["keep_ratio"] = keep_ratio
    if step is not None:
        options["align"] = step
    given = _first_input(data) if example is None else example
    front = globals()["search"](model, given, data, limits=limits, searcher=search, **options)
    best: Candidate = front.best("latency") if limits else front.knee()
    return best


def _first_input(data: Data) -> Any:
    from paretoprune.core.data import split_batch

    for batch in data.train:
        inputs, _ = split_batch(batch)
        if inputs.kwargs and not inputs.args:
            return dict(inputs.kwargs)
        return inputs.args
    raise UsageError("data.train is empty: give at least one batch, or example=")


def _open(
    model: nn.Module,
    example: Any,
    data: Data,
    task: str | Task,
    target: str | Target,
    device: str,
    settings: Settings,
    out: str | Path | None,
    dynamic: Mapping[str, Iterable[int]] | None,
    progress: Progress,
    meter: str | Meter | None,
) -> Study:
    """Check everything that can be checked before any work, then lock the folder."""
    meaning, runtime = task_of(task), find_target(target, settings.threads)
    check_parts(settings, runtime, device, data)
    reader = None if meter is None else open_meter(meter)
    for threads in settings.tune_threads:
        hardware.with_threads(runtime, threads)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    folder = Path(out) if out is not None else Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    RunFolder.refuse_unusable(folder)
    model = as_module(model, example)
    graphs.check_model(model)
    with progress.stage("capture", None):
        traced = graphs.trace(model, example, dims)
        traced = replace(traced, example=replace(traced.example, dynamic=dims))
    choose.chosen_axes(traced, settings.axes, settings.ignore)
    check_swaps(traced, settings)
    check_metrics(settings, traced.example)
    module = traced.program.module
    with progress.stage("reading the data", None), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checked = check_data(
            data,
            traced.example,
            meaning,
            predict=lambda e: module(*e.args, **e.kwargs),
            cap=settings.max_batches,
            dynamic=dims,
        )
    opened = RunFolder.open(folder, identity(traced, checked, meaning, runtime, settings, reader))
    about = {
        "target": dict(runtime.fingerprint()),
        "axes": {a.id: a.size for a in traced.axes if a.prunable},
        "notes": [*traced.notes, *(str(w.message) for w in caught)],
        "samples": dict(checked.samples),
        "model": type(model).__name__,
    }
    opened.once("about", "run", lambda: about)
    return Study(opened, model, traced, checked, meaning, runtime, settings, device, progress, reader)


def _refuse_unjudgeable(study: Study) -> None:
    """A limit on a figure that this task or these labels cannot give is refused once the original was judged."""
    record = study.folder.done("candidate", "original") or {}
    for limit in study.limits:
        if limit.about.quality and limit.about.key not in record["measurements"]:
            why = record.get("absent", {}).get(limit.about.key, "it was not taken")
            raise LimitError(f"limit {str(limit)!r} cannot be judged: {why}; drop the limit")


def _refuse_unreachable(study: Study, options: space.Space) -> None:
    """The cheapest plan, exported without recovery, bounds what any member can cost: refuse limits beyond it."""
    costly = Limits(tuple(limit for limit in study.limits if limit.about.bounded))
    if not costly:
        return
    bounds = study.once("reach", "cheapest", lambda: _measure_cheapest(study, options))
    if not bounds:
        return
    front = results.front_of(study.folder)
    cheapest = [
        Candidate(
            f"cheapest-{p}", Plan(), p, study.folder.path, {k: Measurement.from_json(m) for k, m in taken.items()}
        )
        for p, taken in bounds.items()
    ]
    unmet = costly.unreachable([*cheapest, *front.candidates], front.original.measurements, front.judge)
    if unmet:
        raise UnreachableLimitError(f"{unmet} (the cheapest network that this search can make was measured)")


def _measure_cheapest(study: Study, options: space.Space) -> dict[str, Any]:
    """Figures by precision; none where a file cannot be made, for then nothing is known of what it would cost."""
    try:
        return _cheapest(study, options)
    except StoreError:
        raise
    except PruneError as error:
        study.folder.record("failure", "cheapest", {"cause": str(error), "type": type(error).__name__}, replace=True)
        return {}


def _cheapest(study: Study, options: space.Space) -> dict[str, Any]:
    widths = {c.axis: c.widths[0] for c in options.choices}
    plan = options.plan(study, widths)
    program = graphs.cut(study.traced, plan).program
    put_zeros(program, plan.sparsity, study.calibration)
    module = program.module
    taken: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        for precision in study.settings.precisions:
            file = Path(folder) / f"{precision}{suffix_of(study.target)}"
            export(study, f"cheapest-{precision}", module, file, precision)
            figures = measure(study, "cheapest", file, widths=candidates.widths_of(plan), memory=True)
            taken[precision] = {k: m.to_json() for k, m in figures.items()}
    return taken
