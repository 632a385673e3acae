"""Carry out what the search chose: cut, prove, recover, keep the weights, then one file per precision."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.errors import AllCandidatesFailedError, PruneError, StoreError, TargetError
from paretoprune.core.plan import Plan
from paretoprune.pipeline import artefact, files
from paretoprune.pipeline.handing_back import with_values
from paretoprune.pipeline.inside import HIDDEN_WEIGHT, hidden_of
from paretoprune.pipeline.prune import reconstruct
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.put_zeros import put_zeros
from paretoprune.pipeline.space import Space
from paretoprune.pipeline.study import Study
from paretoprune.pipeline.swaps import EVERY
from paretoprune.pipeline.threads import free_threads
from paretoprune.pipeline.zero_hooks import zero_hooks

RECOVERY_SHARE = 0.75
"""Share of the time left that distillation may plan with; the rest is for export and measuring."""
MAX_EPOCHS = 10
PROBE_STEPS = 3
RECONSTRUCTED = "reconstructed"
MIN_CANDIDATES = 4
"""Carried out whatever the budget: fewer are no front."""


def originals(study: Study) -> None:
    """The unpruned network in every precision: the baseline, and competitors like any other."""
    with study.progress.stage("original", len(study.settings.precisions)) as bar:
        for precision in study.settings.precisions:
            name = "original" if precision == "fp32" else f"original-{precision}"
            try:
                if not study.folder.has("failure", name):
                    artefact.finish(study, name, "original", precision, lambda: study.traced.program.module, Plan())
            except StoreError:
                raise
            except PruneError as error:
                # Without the fp32 original there is nothing to compare with; another precision may be missing.
                if precision == "fp32":
                    raise
                study.folder.record("failure", name, {"cause": str(error), "type": type(error).__name__})
            bar.advance(note=name)


def carry_out_all(
    study: Study,
    space: Space,
    chosen: Sequence[Mapping[str, int]],
    steps: int,
    started: float,
    swaps: Sequence[str] = (),
) -> None:
    """Every candidate in turn; one that fails is recorded with its cause and the search goes on.

    `swaps`: the cheaper activation of each, or "".

    What the budget leaves no room for is left out, and said; the order of `chosen` covers the range early.
    """
    with study.progress.stage("candidates", len(chosen)) as bar:
        for number, widths in enumerate(chosen, 1):
            name = f"c{number:02d}"
            if _cut_short(study, number, len(chosen), started):
                break
            if not study.folder.has("failure", name):
                swap = swaps[number - 1] if swaps else ""
                plan = replace(space.plan(study, widths), activations={EVERY: swap} if swap else {})
                _try(study, name, plan, steps)
            bar.advance(note=name)
    if not any(key.startswith("c") for key in study.folder.all("candidate")):
        raise AllCandidatesFailedError(f"no candidate could be finished: {grouped(study.folder.all('failure'))}")


def _cut_short(study: Study, number: int, planned: int, started: float) -> bool:
    """Is the budget spent? Decided once: a second run of a finished search does not go on."""
    key = str(number)
    if study.folder.has("out of budget", key):
        return True
    late = time.perf_counter() - started > study.settings.budget_s
    if not late or number <= MIN_CANDIDATES or study.folder.has("network", f"c{number:02d}"):
        return False
    study.folder.record("out of budget", key, {"planned": planned, "carried out": number - 1})
    return True


def _try(study: Study, name: str, plan: Plan, steps: int) -> None:
    try:
        _carry_out(study, name, plan, steps)
    except StoreError:
        raise
    except PruneError as error:
        study.folder.record("failure", name, {"cause": str(error), "type": type(error).__name__})


def grouped(failures: Mapping[str, Any]) -> str:
    """Causes by count, most frequent first."""
    counts: dict[str, int] = {}
    for failure in failures.values():
        counts[failure["cause"]] = counts.get(failure["cause"], 0) + 1
    return "; ".join(f"{n} × {cause}" for cause, n in sorted(counts.items(), key=lambda kv: -kv[1])) or "none was tried"


def _carry_out(study: Study, name: str, plan: Plan, steps: int) -> None:
    todo = [p for p in study.settings.precisions if not study.folder.has("candidate", f"{name}-{p}")]
    if not todo:
        return
    if not study.folder.has("network", name):
        with free_threads():
            _make(study, plan, name, steps)
    model = files.load(study.folder.path / "members" / name).model
    for precision in todo:
        _finish(study, f"{name}-{precision}", name, precision, lambda: model, plan)


def _finish(study: Study, file: str, name: str, precision: str, load: Callable[[], nn.Module], plan: Plan) -> None:
    """A file that cannot be made, or is wrong, fails alone: the network may stand in another precision."""
    if study.folder.has("failure", file):
        return
    try:
        artefact.finish(study, file, name, precision, load, plan)
    except TargetError as error:
        study.folder.record("failure", file, {"cause": str(error), "type": type(error).__name__})


def _make(study: Study, plan: Plan, name: str, steps: int) -> None:
    """The recovered network, saved and recorded."""
    start = reconstructed(study, plan)
    found, recovery = _distil_if_better(study, start, steps) if steps else (start, RECONSTRUCTED)
    keep(study, name, found, steps, recovery)


def reconstructed(study: Study, plan: Plan) -> Pruned:
    """Cut, proved, and with least squares along the network."""
    with study.timed("surgery"):
        cut = graphs.cut(study.traced, plan)
        graphs.check(study.traced, plan)
    with study.timed("reconstruct"):
        notes = reconstruct(study.traced, cut, study.calibration, study.settings.calibration_samples)
        notes += put_zeros(cut.program, plan.sparsity, study.calibration)
    notes += [f"{new} takes the place of {n} activations" for new, n in Counter(cut.activations.values()).items()]
    macs = study.traced.macs(widths_of(plan), plan.blocks), study.traced.macs()
    return Pruned(cut.program.module, plan, cut.kept, cut.program, *macs, tuple(notes))


def widths_of(plan: Plan) -> dict[str, int]:
    return {axis: len(kept) for axis, kept in plan.kept.items()}


def keep(study: Study, name: str, pruned: Pruned, steps: int, recovery: str) -> None:
    """A candidate's network in the run folder; its files are made from it."""
    folder = study.folder.artefact(f"members/{name}")
    files.save(pruned, folder)
    study.folder.seal(f"members/{name}/{files.MANIFEST}", f"members/{name}/{files.WEIGHTS}")
    told = {"widths": widths_of(pruned.plan), "steps": steps, "recovery": recovery, "notes": list(pruned.notes)}
    study.folder.record("network", name, told)


def better(study: Study, trained: Pruned, start: Pruned, how: str) -> tuple[Pruned, str]:
    """`trained`, or `start` where training left the outputs farther from the original's; and what to say of it.

    Judged on inputs of the validation set, once, after the last step: reconstruction was fitted to the calibration set.
    """
    if study.unseen.divergence(trained.program) <= study.unseen.divergence(start.program):
        return trained, f"reconstructed, {how}"
    return start, f"{RECONSTRUCTED} ({how} were worse)"


def _distil_if_better(study: Study, start: Pruned, steps: int) -> tuple[Pruned, str]:
    trained = with_values(start, {})
    with zero_hooks(start, trained.program.module) as hooks, study.timed("distil"):
        _distil(study, trained.program.module, start.plan, steps, hooks)
    return better(study, trained, start, f"{steps} steps of distillation")


def _distil(study: Study, student: Any, plan: Plan, steps: int, hooks: Sequence[recover.Masked] = ()) -> None:
    """On answers and hidden activations. `student`: the graph that `plan` was carried out on, trained in place."""
    names, place = graphs.hidden_nodes(study.traced), torch.device(study.device)
    hidden = hidden_of(study.traced, plan, student, names, place)
    with study.progress.stage("distillation", steps) as bar:
        recover.distill(
            student,
            study.traced.program.module,
            study.checked.data.train,
            study.task,
            steps=steps,
            lr=study.settings.learning_rate,
            device=study.device,
            seed=study.settings.seed,
            on_step=lambda step, loss: bar.advance(note=f"loss {loss:.3f}"),
            hidden=None if hidden is None else replace(hidden, weight=HIDDEN_WEIGHT),
            hooks=hooks,
        )


def steps_within(study: Study, count: int, started: float) -> int:
    """Distillation steps per candidate: as given, else what the budget has room for, timed on the original."""
    if study.settings.steps is not None:
        return study.settings.steps

    def plan() -> dict[str, Any]:
        with free_threads():
            per_step = _seconds_per_step(study)
        left = study.settings.budget_s - (time.perf_counter() - started)
        fixed = count * _fixed_seconds(study)
        most = MAX_EPOCHS * _batches_per_epoch(study)
        return {
            "steps": max(0, min(most, int(RECOVERY_SHARE * (left - fixed) / (count * per_step)))),
            "seconds": per_step,
        }

    return int(study.once("schedule", "steps", plan)["steps"])


def _seconds_per_step(study: Study) -> float:
    """Teacher and student of the original's size: an upper bound for every candidate."""
    probe = graphs.cut(study.traced, Plan()).program.module
    _distil(study, probe, Plan(), 1)
    begun = time.perf_counter()
    _distil(study, probe, Plan(), PROBE_STEPS)
    return (time.perf_counter() - begun) / PROBE_STEPS


def _fixed_seconds(study: Study) -> float:
    """What the originals took, which every candidate takes again."""
    stages = ("export", "measure", "evaluate")
    return sum(float(s["wall_s"]) for s in study.folder.all("seconds").values() if s["stage"] in stages)


def _batches_per_epoch(study: Study) -> int:
    return max(1, study.checked.batches["train"])
