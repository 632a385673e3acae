"""What the search chooses from: widths per axis, which positions go first, what each width costs and damages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretoprune import criteria, recover
from paretoprune import graph as graphs
from paretoprune.core.axis import Axis
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Choice
from paretoprune.pipeline import choose, cost_model, level_choices
from paretoprune.pipeline.cost_model import CostModel
from paretoprune.pipeline.evidence import elimination
from paretoprune.pipeline.prune import score
from paretoprune.pipeline.settings import LEAST_SQUARES, Settings
from paretoprune.pipeline.study import Study
from paretoprune.targets import CostTable, staircase

WIDTHS_PER_AXIS = 8


@dataclass(frozen=True)
class Space:
    """`order`: positions of each axis, first to go first. `step`: the target's channel step. `model`: of the cost."""

    choices: tuple[Choice, ...]
    order: Mapping[str, Sequence[int]]
    step: int
    model: CostModel

    def plan(self, study: Study, widths: Mapping[str, int]) -> Plan:
        return level_choices.plan_of(study.traced, self.model.levels, widths, self.order)


def build(study: Study) -> Space:
    """Order, widths, costs and errors, each stage journaled."""
    axes = choose.chosen_axes(study.traced, study.settings.axes, study.settings.ignore)
    table = CostTable.cached(study.target)
    step = int(study.once("staircase", "fp32", lambda: _step(study, table))["step"])
    order = study.once("order", study.settings.criterion, lambda: _orders(study, axes))
    widths = {a.id: _widths(a, step, _floor(a, study.settings)) for a in axes}
    study.folder.once("widths", "axes", lambda: widths)  # the error curves below are read beside them
    levels = level_choices.levels_of(study)
    model = cost_model.of(study, table, widths, order, levels)
    costs = study.once("cost table", "layers", lambda: _costs(study, model, widths))
    zeros = level_choices.choices_of(study, levels, model)
    table.keep()
    errors = study.once("error curves", "kl", lambda: _errors(study, axes, widths, order))
    choices = tuple(
        Choice(a.id, widths[a.id], tuple(errors[a.id]), tuple(costs[a.id])) for a in axes if len(widths[a.id]) > 1
    )
    return Space((*choices, *zeros), order, step, model)


def _step(study: Study, table: CostTable) -> dict[str, Any]:
    if study.settings.align != "auto":
        return {"step": study.settings.align, "read": False}
    found = staircase(table)
    return {"step": found.step, "read": True, "cost_ms": {str(w): c for w, c in found.cost_ms.items()}}


def _floor(axis: Axis, settings: Settings) -> int:
    return min(axis.size, max(settings.floor, math.ceil(axis.size * settings.keep_ratio)))


def _widths(axis: Axis, step: int, floor: int) -> tuple[int, ...]:
    """Multiples of the step; an axis that is not wider than a step may also be halved, if that pays."""
    widths = set(choose.candidate_widths(axis.size, step, floor, WIDTHS_PER_AXIS))
    half = axis.size // 2
    if axis.size <= step and half >= floor:
        widths.add(half)
    return tuple(sorted(widths))


def _orders(study: Study, axes: Sequence[Axis]) -> dict[str, list[int]]:
    if study.settings.criterion != LEAST_SQUARES:
        scorer = criteria.criterion_of(study.settings.criterion)
        return choose.removal_order(score(study.scored, axes, scorer, study.task, study.calibration))
    grams = study.grams_of(study.scored)
    by_weight = {c.weight: c for c in study.traced.program.contractions if c.node in grams}
    orders = {a.id: elimination(study.scored, a, by_weight, grams) for a in axes}
    found = {a: order.positions.tolist() for a, order in orders.items() if order is not None}
    rest = [a for a in axes if a.id not in found]
    scores = score(study.traced, rest, criteria.criterion_of("magnitude"), study.task, None) if rest else None
    others = choose.removal_order(scores) if scores is not None else {}
    return {a.id: found[a.id] if a.id in found else others[a.id] for a in axes}


def _costs(study: Study, model: CostModel, widths: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    """Predicted cost with one axis at each of its widths."""
    with study.progress.stage("cost table", sum(map(len, widths.values()))) as bar:
        result: dict[str, list[float]] = {}
        for axis, choices in widths.items():
            result[axis] = []
            for width in choices:
                result[axis].append(model.share({axis: width}))
                bar.advance(note=f"{axis} = {width}")
        return result


def _errors(
    study: Study, axes: Sequence[Axis], widths: Mapping[str, Sequence[int]], order: Mapping[str, Sequence[int]]
) -> dict[str, list[float]]:
    """Divergence of the network's output when one axis alone is cut to each width and reconstructed.

    "Replaced-block KL": the damage is measured where it counts, at the output, with the remedy applied.
    """
    reference = study.reference
    with study.progress.stage("error curves", sum(len(widths[a.id]) - 1 for a in axes)) as bar:
        result: dict[str, list[float]] = {}
        for axis in axes:
            errors = []
            for width in widths[axis.id][:-1]:
                plan = choose.plan_of(study.traced, {axis.id: width}, order)
                cut = graphs.cut(study.traced, plan)
                recover.reconstruct_program(reference.tensors, cut.program, cut.kept, study.grams)
                errors.append(reference.divergence(study.judged(cut.program)))
                bar.advance(note=f"{axis.id} = {width}")
            # A narrower width never does less damage: what noise says against it is taken out.
            falling = np.maximum.accumulate([0.0, *reversed(errors)])[::-1]
            result[axis.id] = [float(e) for e in falling]
        return result
