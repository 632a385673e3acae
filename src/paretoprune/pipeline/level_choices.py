"""Zeros and dropped blocks as choices of the search, beside widths.

A weight takes one of a few levels, the last of which is dense; a residual block goes or stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from paretoprune import graph as graphs
from paretoprune.core.errors import UsageError
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Choice, Target
from paretoprune.core.sparsity import Zeros
from paretoprune.graph import TracedGraph
from paretoprune.pipeline import choose
from paretoprune.pipeline.cost_model import CostModel
from paretoprune.pipeline.levels import Levels
from paretoprune.pipeline.put_zeros import put_zeros
from paretoprune.pipeline.study import Study

PREFIX, BLOCK = "zeros in ", "block "
USUAL, USUAL_INT8 = ("16x1@0.9", "16x1@0.8", "16x1@0.5"), ("16x4@0.8",)
"""On a target whose kernels gain from zeros: the blocks that they compute fastest, in 32 bits and in 8."""
FEWEST = 1024
"""Weights of a layer that is worth it."""
SAVING = 0.002
"""Of the network's cost; a layer with less is left dense."""


def usual_of(target: Target, precisions: Collection[str]) -> tuple[str, ...]:
    if not getattr(target, "gains_from_zeros", False):
        return ()
    return (*USUAL, *(USUAL_INT8 if "int8" in precisions else ()))


def checked(texts: Sequence[str], target: Target, nested: bool) -> None:
    """Raises UsageError where zeros would cost accuracy and give nothing, PlanError for a text that says no pattern."""
    for text in texts:
        Zeros.parse(text)
    if texts and not getattr(target, "gains_from_zeros", False):
        raise UsageError(
            f"zeros={list(texts)}: {target.name} is no faster for zeros in its weights; use target='sparse-cpu', or "
            "leave zeros out"
        )
    if texts and nested:
        raise UsageError("nested=True trains one network's weights for all, and zeros differ: leave one of them out")


def levels_of(study: Study) -> Levels:
    """Zeros for every weight that is large enough; with `depth`, every block that can go."""
    texts, zeros = study.settings.zeros or (), {}
    if texts:
        ordered = tuple(sorted(texts, key=lambda t: -(Zeros.parse(t).share or 0.0)))
        weights = graphs.layer_weights(study.traced.program.module).weights
        zeros = {f"{PREFIX}{n}": (n, ordered) for n, w in weights.items() if w.numel() >= FEWEST}
    removable = [b.name for b in study.traced.blocks if b.removable] if study.settings.depth else []
    return Levels(zeros, {f"{BLOCK}{name}": name for name in removable})


def choices_of(study: Study, levels: Levels, model: CostModel) -> list[Choice]:
    """With the predicted cost and the measured damage of each level alone; what gains nothing is left out."""
    dearer = {n: len(texts) for n, (_, texts) in levels.zeros.items()} | dict.fromkeys(levels.blocks, 1)

    def take() -> dict[str, dict[str, list[float]]]:
        found = {}
        with study.progress.stage("zeros and blocks", len(dearer)) as bar:
            for name, count in dearer.items():
                costs = [model.share({name: level}) for level in range(1, count + 1)]
                if min(costs) <= 1 - SAVING:
                    errors = [_error(study, levels, {name: level}) for level in range(1, count + 1)]
                    found[name] = {"cost": [*costs, 1.0], "error": [*errors, 0.0]}
                bar.advance(note=name)
        return found

    rows = study.once("zeros and blocks", "levels", take) if dearer else {}
    return [
        Choice(name, tuple(range(1, len(row["cost"]) + 1)), tuple(row["error"]), tuple(row["cost"]))
        for name, row in rows.items()
    ]


def _error(study: Study, levels: Levels, chosen: Mapping[str, int]) -> float:
    """Divergence of the network's output with one such choice, which nothing makes up for."""
    plan = plan_of(study.traced, levels, chosen, {})
    program = graphs.cut(study.traced, plan).program
    put_zeros(program, plan.sparsity, study.calibration)
    return study.reference.divergence(study.judged(program))


def plan_of(traced: TracedGraph, levels: Levels, widths: Mapping[str, int], order: Mapping[str, Sequence[int]]) -> Plan:
    chosen = levels.meaning(widths)
    blocks = traced.residual.named(chosen.blocks) if chosen.blocks else ()
    left = set(traced.layer_weights(blocks))
    zeros = {weight: text for weight, text in chosen.zeros.items() if weight in left}
    return replace(choose.plan_of(traced, chosen.widths, order, blocks), sparsity=zeros)
