"""Distillation inside the network: where student and teacher are compared, and the blocks one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from paretoprune import graph as graphs
from paretoprune import recover
from paretoprune.core.copies import duplicate
from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.graph import TracedGraph
from paretoprune.pipeline.opening import opened
from paretoprune.pipeline.prune import copy_tensors
from paretoprune.pipeline.pruned import Pruned
from paretoprune.recover import Hidden, Training
from paretoprune.recover.loop import Loss

HIDDEN_WEIGHT = 20.0
"""Of the relative error of the activations, beside the loss of the answers: chosen on validation images (ResNet-20)."""
Places = bool | Sequence[str]
"""True for those that the graph names itself, or their names."""


@dataclass(frozen=True)
class Pair:
    """A student to train and the teacher's copy, with the hidden part of the loss."""

    student: nn.Module
    hidden: Hidden


def pair_of_graphs(
    pruned: Pruned, teacher: nn.Module, places: Places, example: Any, dynamic: Any, place: torch.device
) -> Pair:
    """Both networks as graphs, compared at nodes. Raises UsageError where the teacher is not what was pruned."""
    if not isinstance(pruned.program.module, fx.GraphModule):
        raise UsageError("this network was loaded without its graph: distil it without hidden= and blockwise=")
    if example is None and pruned.blueprint is None:
        raise UsageError("the teacher must be traced for hidden= and blockwise=: give example=, as for prune()")
    given = pruned.blueprint.example if example is None and pruned.blueprint is not None else Example.of(example)
    traced = graphs.trace(opened(teacher, given), given, dynamic)
    if pruned.plan.graph not in ("", traced.fingerprint):
        raise UsageError(
            f"the teacher (graph {traced.fingerprint}) is not the network that was pruned (graph {pruned.plan.graph}): "
            "its activations cannot be told by node; give the original, or distil without hidden= and blockwise="
        )
    student = duplicate(pruned.program.module)
    copy_tensors(opened(pruned.model), student)
    student.zero_grad(set_to_none=True)
    names = graphs.hidden_nodes(traced) if isinstance(places, bool) else tuple(places)
    hidden = hidden_of(traced, pruned.plan, student, names, place)
    if hidden is None:
        raise UsageError("no hidden activation of the teacher is left in the student: distil without hidden=")
    return Pair(student, hidden)


def hidden_of(
    traced: TracedGraph, plan: Plan, student: fx.GraphModule, names: Sequence[str], place: torch.device
) -> Hidden | None:
    """The loss at those of these nodes that `student`, the graph that `plan` was carried out on, still has."""
    there = {n.name for n in student.graph.nodes}
    kept = {n: k for n, k in graphs.kept_at(traced, plan, names).items() if n in there}
    if not kept:
        return None
    frozen = recover.frozen_copy(traced.program.module, place)
    return Hidden(frozen, tuple(kept), graphs.tapped, lambda n, t: graphs.selected(t, kept[n]))


def pair_of_modules(student: nn.Module, teacher: nn.Module, places: Places, place: torch.device) -> Pair:
    """Both as they are, compared at the submodules of these names, which must give the same shapes."""
    if isinstance(places, bool):
        raise UsageError(
            "hidden=True finds the places in the graph of a Pruned; of a module give the names of submodules, e.g. "
            "hidden=['layer1', 'layer2']"
        )
    frozen = recover.frozen_copy(teacher, place)
    return Pair(student, Hidden(frozen, tuple(places), recover.look_by_module, lambda _, t: t))


def by_blocks(
    pair: Pair, last: Loss, batches: Iterable[Any], steps: int, about: Mapping[str, Any], training: Training
) -> None:
    """Train each place's own parameters on the teacher's activation there, in the order of the graph, `steps` each.

    The blocks before are done by then: they run in training mode and are not changed, but for running statistics. What
    is left after the last place is trained by `last`.
    """
    module = pair.student
    if not isinstance(module, fx.GraphModule):
        raise UsageError("blockwise=True needs the graph of a Pruned: it is not known which parameters a module needs")
    trainable = [p for p in module.parameters() if p.requires_grad]
    named = dict(module.named_parameters(remove_duplicate=False))
    folder = training.get("checkpoint")
    places = pair.hidden.places
    try:
        for number, names in enumerate(graphs.new_parameters(module, places)):
            own = {id(named[n]) for n in names}
            for p in trainable:
                p.requires_grad_(id(p) in own)
            if not any(p.requires_grad for p in trainable):
                continue
            place = places[number] if number < len(places) else "output"
            loss: Loss = replace(pair.hidden, places=(place,)) if number < len(places) else last
            options = {**training, "checkpoint": None if folder is None else Path(folder) / f"{number:03d}"}
            name = f"distillation of block '{place}'"
            recover.train(module, loss, batches, steps=steps, name=name, about=about, **options)  # type: ignore[arg-type]
    finally:
        for p in trainable:
            p.requires_grad_(True)
