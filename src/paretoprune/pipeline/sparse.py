"""`pp.train_sparse`: training that makes positions ready to be removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from paretoprune import graph as graphs
from paretoprune.core.axis import Axis, Scores
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.core.plan import Plan
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Task
from paretoprune.graph import TracedGraph
from paretoprune.pipeline import choose
from paretoprune.pipeline.ranking import normalised
from paretoprune.pipeline.tuning import options, training_copy, tune_
from paretoprune.recover import Training, sparse
from paretoprune.recover.training import LR
from paretoprune.tasks import fitted, task_of

Made = tuple[nn.Module, sparse.SparseMethod]
"""The module that is trained (the network itself, or the network with gates) and the hook."""


def _lasso(net: nn.Module, groups: sparse.Groups, counts: Mapping[str, int], strength: float) -> Made:
    return net, sparse.GroupLasso(groups, strength, counts)


def _greg(net: nn.Module, groups: sparse.Groups, counts: Mapping[str, int], strength: float) -> Made:
    return net, sparse.GrowingRegularisation(groups, counts, strength)


def _l0(net: nn.Module, groups: sparse.Groups, counts: Mapping[str, int], strength: float) -> Made:
    gated = sparse.Gated(net, groups)
    return gated, sparse.L0Gates(gated, counts, strength)


def _soft(net: nn.Module, groups: sparse.Groups, counts: Mapping[str, int], strength: float) -> Made:
    return net, sparse.SoftPruning(groups, counts, round(strength))


METHODS: Mapping[str, tuple[Callable[[nn.Module, sparse.Groups, Mapping[str, int], float], Made], float]] = {
    "group_lasso": (_lasso, 2.0),
    "greg": (_greg, 10.0),
    "l0": (_l0, 3.0),
    "sfp": (_soft, 10.0),
}
"""Method -> how it is made and its default strength."""


@dataclass(frozen=True)
class SparseTrained:
    """A trained network of the caller's class, in eval mode, with positions that can go.

    `removed`: by axis id the positions of which every parameter is zero. `scores`: larger is more important; those of
    `removed` are 0. `change`: the largest difference, relative to the output's scale, that taking `removed` out makes
    on the example; not 0 where a normalisation takes statistics over a pruned axis (`notes` says so).
    `loss`: mean training loss of the last ten steps.
    """

    model: nn.Module
    method: str
    scores: Scores
    removed: Mapping[str, tuple[int, ...]]
    loss: float
    change: float
    notes: tuple[str, ...]
    traced: TracedGraph = field(repr=False)
    axes: tuple[Axis, ...] = field(repr=False)

    def plan(
        self,
        ratio: float | Mapping[str, float] | None = None,
        *,
        macs: float | None = None,
        align: int = 1,
        floor: int = 1,
    ) -> Plan:
        """What `pp.apply(trained.model, example, plan)` removes: `removed`, or another share in the same order.

        `ratio`, `macs`, `align`, `floor` as in `pp.prune`, over the axes that were trained. Raises UsageError,
        PlanError.
        """
        if ratio is not None and macs is not None:
            raise UsageError("ratio and macs were both given: give one of them, or neither for what training zeroed")
        if macs is not None:
            scores = normalised(self.scores, "mean")
            widths = choose.widths_by_macs(self.traced, self.axes, scores, macs, align, floor)
        elif ratio is not None:
            widths = choose.widths_by_ratio(self.axes, ratio, align, floor)
        else:
            widths = {axis.id: axis.size - len(self.removed.get(axis.id, ())) for axis in self.axes}
        return choose.plan_of(self.traced, widths, choose.removal_order(self.scores))


def train_sparse(
    model: nn.Module,
    example: Any,
    batches: Iterable[Any],
    *,
    method: str = "group_lasso",
    steps: int,
    ratio: float | Mapping[str, float] = 0.5,
    axes: choose.AxisChoice = "inner",
    ignore: Sequence[str] = (),
    align: int = 1,
    floor: int = 1,
    task: str | Task = "classification",
    strength: float | None = None,
    settle: float = 0.5,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    lr: float = LR,
    **training: Unpack[Training],
) -> SparseTrained:
    """Train a copy of `model` so that a share `ratio` of the positions of its axes can be removed; `model` stays.

    `method`:
    - "group_lasso": every position is shrunk at each step, weak ones faster; the loss defends some. Strength: 2 takes a
      position of mean norm that the loss does not defend to zero in half of the time.
    - "greg": the lowest are chosen at the start and pressed harder and harder (GReg-1). Strength: 10 leaves e⁻¹⁰.
    - "l0": a hard-concrete gate on every position. Strength: how fast the price of an open gate follows.
    - "sfp": the lowest are set to zero from time to time and may come back. Strength: the number of times.
    The sources are with the classes in `paretoprune.recover.sparse`.

    The method has the first steps; for the last share `settle` the chosen positions are zero in every parameter and the
    others train on. Then `pp.apply(result.model, example, result.plan())` removes them without changing the output
    (`result.change` is that difference, measured). `batches`: (x, y) or dicts, gone round until `steps` are done. `lr`
    is of the default optimizer; further keywords (`optimizer`, `scheduler`, `device`, `precision`, `seed`, `on_step`,
    `checkpoint` …) as in `recover.train`. Axes with a frozen parameter are left out and noted. Raises ModelError,
    CaptureError, UsageError, PlanError, DataError, and PruneError that names the step where the loss is not finite.
    """
    make, usual = look_up("method", method, METHODS)
    choose.check_positive(steps=steps)
    strength = usual if strength is None else sparse.check_strength(strength)
    how, meaning = options(training, lr), task_of(task)
    dims = {name: tuple(given) for name, given in (dynamic or {}).items()}
    net = training_copy(model)
    traced = graphs.trace(net, example, dims)
    given = fitted("batches", batches, traced.example, dynamic=dims)
    chosen, notes = _trainable(net, choose.chosen_axes(traced, axes, ignore))
    widths = choose.widths_by_ratio(chosen, ratio, align, floor)
    counts = {axis.id: axis.size - widths[axis.id] for axis in chosen}
    groups = sparse.Groups(net, chosen)
    trained, hook = make(net, groups, counts, strength)
    settling = sparse.Settling(hook, groups, counts, settle)
    loss = tune_(trained, meaning, given, steps, how, f"sparse training ({method})", (settling,)).loss
    if isinstance(trained, sparse.Gated):
        trained.fold_()
    scores = _scores(hook, settling.removed)
    change = _change(net.eval(), traced, settling.removed)
    if change > TOLERANCE:
        notes.append(
            f"taking the zeroed positions out changes the output by {change:.3g} of its scale: a normalisation takes "
            "its statistics over them, or they are seen before they are zero; tune after pruning"
        )
    everything = (*traced.notes, *notes)
    return SparseTrained(net, method, scores, settling.removed, loss, change, everything, traced, chosen)


TOLERANCE = 1e-4
"""Relative change of the output that single precision explains."""


def _trainable(net: nn.Module, axes: Sequence[Axis]) -> tuple[tuple[Axis, ...], list[str]]:
    """The axes without frozen parameters, and a sentence on each of the others."""
    frozen = {n for n, p in net.named_parameters(remove_duplicate=False) if not p.requires_grad}
    held = {axis.id: [m.name for m in axis.members if m.name in frozen] for axis in axes}
    notes = [f"axis '{axis}' was left out: '{names[0]}' is frozen" for axis, names in held.items() if names]
    left = tuple(axis for axis in axes if not held[axis.id])
    if not left:
        raise ModelError(f"every axis stands in a frozen parameter ({notes[0]}): let one of them train")
    return left, notes


def _scores(method: sparse.SparseMethod, removed: Mapping[str, Sequence[int]]) -> Scores:
    """The method's scores; 0 for what was zeroed, so that it goes first."""
    found = {axis: score.double().numpy().copy() for axis, score in method.scores().items()}
    for axis, score in found.items():
        kept = [p for p in range(len(score)) if p not in set(removed.get(axis, ()))]
        score[kept] = score[kept].clip(min=TINY)
        score[list(removed.get(axis, ()))] = 0.0
    return Scores(found, type(method).__name__)


TINY = 1e-12
"""Below every score of a position that stays, so that those that were zeroed come before it."""


def _change(net: nn.Module, traced: TracedGraph, removed: Mapping[str, Sequence[int]]) -> float:
    sizes = {axis.id: axis.size for axis in traced.axes}
    kept = {a: tuple(p for p in range(sizes[a]) if p not in set(gone)) for a, gone in removed.items()}
    program = graphs.cut(traced, Plan(kept), _state(net, traced)).program.module.eval()
    inputs = traced.example
    with torch.no_grad():
        pair = [_leaves(m(*inputs.args, **inputs.kwargs)) for m in (net, program)]
    scale = max((float(a.abs().max()) for a in pair[0]), default=0.0) or 1.0
    return max((float((a - b).abs().max()) / scale for a, b in zip(*pair, strict=True)), default=0.0)


def _state(net: nn.Module, traced: TracedGraph) -> dict[str, Tensor]:
    """The network's values under the graph's names: parameters are shared, buffers are the graph's own."""
    values = graphs.tensors_of(net)
    return {name: values.get(name, tensor) for name, tensor in graphs.tensors_of(traced.captured).items()}


def _leaves(output: Any) -> list[Tensor]:
    return [v.double() for v in pytree.tree_leaves(output) if isinstance(v, Tensor) and v.is_floating_point()]
