"""Activations inside a graph that runs with gradients, and which of their positions a pruned graph has kept."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from paretoprune.core.errors import UsageError
from paretoprune.core.graph import Example, placeholders
from paretoprune.core.plan import Plan
from paretoprune.graph.activations import activated
from paretoprune.graph.algebra import atoms_of
from paretoprune.graph.positions import kept_indices
from paretoprune.graph.surgery import dropped, validated
from paretoprune.graph.traced import TracedGraph

KeptAt = Mapping[str, tuple[NDArray[np.int64] | None, ...]]
"""By node, one entry per dim of what it gives: the kept indices, or None for all."""


def tapped(
    module: nn.Module, inputs: Example, nodes: Sequence[str], whole: bool = True
) -> tuple[Any, dict[str, Tensor]]:
    """(output, what each of `nodes` gave). Unless `whole`, the run ends at the last of them and the output is None."""
    if not isinstance(module, fx.GraphModule):
        raise UsageError(f"{type(module).__name__} is no graph: its activations cannot be told by node")
    reader = _Tap(module, nodes, whole)
    try:
        return reader.run(*placeholders(module, inputs)), reader.found
    except _Enough:
        return None, reader.found


class _Enough(Exception):
    pass


class _Tap(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, nodes: Sequence[str], whole: bool):
        super().__init__(module)
        self.wanted, self.whole = frozenset(nodes), whole
        self.found: dict[str, Tensor] = {}
        self.extra_traceback = False  # an error of the network is its own sentence

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.found[n.name] = value
            if not self.whole and len(self.found) == len(self.wanted):
                raise _Enough
        return value


def hidden_nodes(graph: TracedGraph) -> tuple[str, ...]:
    """Where a pruned network should give what the original gave, in the order of the graph.

    The sums of the residual blocks; in a network without any, the layers (what has a weight that is summed over; of a
    recurrent one its sequence).
    """
    sums = {total.name for total, _ in graph.residual.skips.values()}
    layers = {c.node for c in graph.program.contractions}
    found = sums or {_sequence(n) for n in graph.captured.graph.nodes if n.name in layers}
    return tuple(n.name for n in graph.captured.graph.nodes if n.name in found)


def _sequence(node: fx.Node) -> str:
    """The node itself, or the first of its several outputs."""
    return next((u.name for u in node.users if u.target is operator.getitem and u.args[1] == 0), node.name)


def kept_at(graph: TracedGraph, plan: Plan, nodes: Sequence[str]) -> KeptAt:
    """Positions of what each node gives that are left after pruning; nodes of dropped blocks are left out.

    Raises UsageError for a node that the graph does not have, or that gives no single tensor.
    """
    graph = activated(graph, plan.activations)
    atoms = {graph.atoms[name]: kept for name, kept in validated(graph, plan).items()}
    gone = graph.residual.gone(dropped(graph, plan)) if plan.blocks else frozenset()
    by_name = {n.name: n for n in graph.inferred.dims}
    result = {}
    for name in nodes:
        dims = graph.inferred.dims.get(by_name[name]) if name in by_name else None
        if not isinstance(dims, tuple):
            raise UsageError(
                f"the graph has no activation {name!r}; it has, for instance, {', '.join(hidden_nodes(graph)[:8])}"
            )
        if by_name[name] in gone:
            continue
        resolved = [graph.inferred.axes.resolve(e) for e in dims]
        result[name] = tuple(kept_indices(e, atoms) if atoms.keys() & set(atoms_of(e)) else None for e in resolved)
    return result


def new_parameters(module: fx.GraphModule, nodes: Sequence[str]) -> list[list[str]]:
    """For each of `nodes`, in the graph's order, the parameters that it needs and none before it; then the rest."""
    order = list(module.graph.nodes)
    by_name = {n.name: n for n in order}
    names = dict(module.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    result: list[list[str]] = []
    for goal in [*(by_name[n] for n in nodes), order[-1]]:
        stack, above = [goal], {goal}
        while stack:
            for source in stack.pop().all_input_nodes:
                if source not in above:
                    above.add(source)
                    stack.append(source)
        read = [str(n.target) for n in order if n in above and n.op == "get_attr" and str(n.target) in names]
        fresh = [n for n in dict.fromkeys(read) if id(names[n]) not in seen]
        seen |= {id(names[n]) for n in fresh}
        result.append(fresh)
    return result


def selected(tensor: Tensor, kept: tuple[NDArray[np.int64] | None, ...]) -> Tensor:
    """The kept positions of an activation of the original network."""
    for dim, indices in enumerate(kept):
        if indices is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(indices).to(tensor.device))
    return tensor
