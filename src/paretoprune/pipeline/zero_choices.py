"""Zeros as choices of the search, beside widths: a weight takes one of a few levels, the last of which is dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

PREFIX = "zeros in "
USUAL = ("16x1@0.9", "16x1@0.8", "16x1@0.5")
"""On a target whose kernels gain from zeros; blocks of 16 outputs are what they compute fastest."""
FEWEST = 1024
"""Weights of a layer that is worth it."""
SAVING = 0.002
"""Of the network's cost; a layer with less is left dense."""


def usual_of(target: Target) -> tuple[str, ...]:
    return USUAL if getattr(target, "gains_from_zeros", False) else ()


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
    """For every weight that is large enough and not ignored."""
    texts = study.settings.zeros or ()
    if not texts:
        return Levels()
    ordered = tuple(sorted(texts, key=lambda t: -(Zeros.parse(t).share or 0.0)))
    weights = graphs.layer_weights(study.traced.program.module).weights
    return Levels({f"{PREFIX}{n}": (n, ordered) for n, w in weights.items() if w.numel() >= FEWEST})


def choices_of(study: Study, levels: Levels, model: CostModel) -> list[Choice]:
    """With the predicted cost and the measured damage of each level alone; layers that gain nothing are left out."""

    def take() -> dict[str, dict[str, list[float]]]:
        found = {}
        with study.progress.stage("zeros", len(levels.by_choice)) as bar:
            for name, (weight, texts) in levels.by_choice.items():
                costs = [model.share({name: level}) for level in range(1, len(texts) + 1)]
                if min(costs) <= 1 - SAVING:
                    found[name] = {"cost": [*costs, 1.0], "error": [*_errors(study, weight, texts), 0.0]}
                bar.advance(note=weight)
        return found

    rows = study.once("zeros", "levels", take) if levels.by_choice else {}
    return [
        Choice(name, tuple(range(1, len(row["cost"]) + 1)), tuple(row["error"]), tuple(row["cost"]))
        for name, row in rows.items()
    ]


def _errors(study: Study, weight: str, texts: Sequence[str]) -> list[float]:
    """Divergence of the network's output with these zeros in one weight, which nothing makes up for."""
    errors = []
    for text in texts:
        program = graphs.cut(study.traced, Plan()).program
        put_zeros(program, {weight: text}, study.calibration)
        errors.append(study.reference.divergence(study.judged(program)))
    return errors


def plan_of(traced: TracedGraph, levels: Levels, widths: Mapping[str, int], order: Mapping[str, Sequence[int]]) -> Plan:
    axes, zeros = levels.split(widths)
    plan = choose.plan_of(traced, axes, order)
    return Plan(plan.kept, plan.graph, plan.blocks, sparsity=zeros)
