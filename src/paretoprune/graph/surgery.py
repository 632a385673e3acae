"""Cut positions out of a captured network: parameters by index, size arguments from dims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from paretoprune.core.errors import PlanError
from paretoprune.core.plan import Plan
from paretoprune.graph.activations import activated, replaced
from paretoprune.graph.algebra import Atom, Expr, atoms_of
from paretoprune.graph.depth import take_out
from paretoprune.graph.op import Op, Resize
from paretoprune.graph.opaque import carried, opaque_paths
from paretoprune.graph.positions import kept_indices, size_of
from paretoprune.graph.program import GraphProgram, runnable
from paretoprune.graph.traced import TracedGraph, tensors_of

Kept = dict[str, tuple[NDArray[np.int64] | None, ...]]
Pieces = Iterator[tuple[Any, torch.Tensor]]
"""(index of a piece in a tensor, its values); the pieces make up the tensor."""


@dataclass(frozen=True)
class Cut:
    """A pruned program and what stayed: per parameter or buffer one entry per dim, None where everything did.

    `blocks`: names of the residual blocks that were dropped; what went with them is not in `kept`.
    `activations`: node -> the cheaper activation that stands there now.
    """

    program: GraphProgram
    kept: Kept
    blocks: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=dict)


def validated(graph: TracedGraph, plan: Plan) -> dict[str, NDArray[np.int64]]:
    """Kept positions by axis id; axes that keep everything are left out. Raises PlanError."""
    by_id = {a.id: a for a in graph.axes}
    result: dict[str, NDArray[np.int64]] = {}
    for name, positions in plan.kept.items():
        axis = by_id.get(name)
        if axis is None:
            known = ", ".join(a.id for a in graph.axes if a.prunable)
            raise PlanError(f"plan names axis '{name}', which this network does not have; it has: {known}")
        kept = np.array(sorted(set(positions)), dtype=np.int64)
        if kept.size and (kept[0] < 0 or kept[-1] >= axis.size):
            bad = int(kept[0] if kept[0] < 0 else kept[-1])
            raise PlanError(f"plan keeps position {bad} of axis '{name}', which has positions 0 to {axis.size - 1}")
        if kept.size == axis.size:
            continue
        if not axis.prunable:
            raise PlanError(f"cannot prune axis '{name}': {axis.why}")
        if kept.size == 0:
            raise PlanError(f"cannot prune axis '{name}' to 0 of {axis.size} positions: at least 1 must stay")
        result[name] = kept
    return result


def cut(graph: TracedGraph, plan: Plan, tensors: Mapping[str, torch.Tensor] | None = None) -> Cut:
    """The pruned network as a program; the graph is not changed. Raises PlanError.

    `tensors` stand in for the graph's own parameters and buffers, by name.
    """
    swaps = replaced(graph, plan.activations)
    graph = activated(graph, plan.activations)
    chosen, blocks = validated(graph, plan), dropped(graph, plan)
    atoms = {graph.atoms[name]: kept for name, kept in chosen.items()}
    tensors = tensors_of(graph.captured) if tensors is None else tensors
    lost = graph.residual.gone_tensors(blocks) if blocks else frozenset()
    tensors = {name: tensor for name, tensor in tensors.items() if name not in lost}
    kept = _kept(graph, atoms, tensors)
    resized = _resized(graph, atoms)
    if blocks:
        take_out(resized, {s.name: x.name for s, x in graph.residual.sums(blocks).items()}, lost)
    module = fx.GraphModule(_sliced(graph, kept, tensors, resized), resized)
    left = {n.name for n in resized.nodes}
    contractions = tuple(c for c in graph.program.contractions if c.node in left)
    batch_norms = tuple(b for b in graph.program.batch_norms if b.node in left)
    swaps = {name: new for name, new in swaps.items() if name in left}
    return Cut(GraphProgram(runnable(module), contractions, batch_norms), kept, blocks, swaps)


def dropped(graph: TracedGraph, plan: Plan) -> tuple[str, ...]:
    """Names of the blocks that go, in the order of the graph. Raises PlanError."""
    return graph.residual.named(plan.blocks) if plan.blocks else ()


def _kept(graph: TracedGraph, atoms: Mapping[Atom, NDArray[np.int64]], tensors: Mapping[str, torch.Tensor]) -> Kept:
    result: Kept = {}
    held = tensors_of(graph.captured)
    cache: dict[int, tuple[NDArray[np.int64] | None, ...]] = {}
    for name, dims in graph.inferred.params.items():
        if name in held and name not in tensors:
            continue  # it went with a block
        if id(dims) not in cache:
            resolved = graph.inferred.resolved(name)
            cache[id(dims)] = tuple(
                kept_indices(e, atoms) if any(a in atoms for a in atoms_of(e)) else None for e in resolved
            )
        result[name] = cache[id(dims)]
    for name, tensor in tensors.items():
        result.setdefault(name, (None,) * tensor.ndim)
    return result


def _sliced(graph: TracedGraph, kept: Kept, tensors: Mapping[str, torch.Tensor], resized: fx.Graph) -> nn.Module:
    """A bare module tree with the sliced tensors; tensors that were one object stay one."""
    root = nn.Module()
    done: dict[int, nn.Parameter | torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in done:
            data = slice_tensor(tensor.detach(), kept[name])
            is_parameter = isinstance(tensor, nn.Parameter)
            done[id(tensor)] = nn.Parameter(data, requires_grad=tensor.requires_grad) if is_parameter else data
        attach(root, name, done[id(tensor)])
    for node in resized.nodes:
        if node.op == "get_attr" and str(node.target) not in kept:
            value = graph.captured
            for part in str(node.target).split("."):
                value = getattr(value, part)
            attach(root, str(node.target), value)
    for path in opaque_paths(graph.captured):
        attach(root, path, carried(graph.captured, path, lambda name: done[id(tensors[name])]))
    return root


_BLOCK_BYTES = 256 << 10
"""Copied at a time: larger pieces would leave the heap full of holes."""


def slice_tensor(
    tensor: torch.Tensor, kept: tuple[NDArray[np.int64] | None, ...], into: torch.Tensor | None = None
) -> torch.Tensor:
    """A copy that holds only the kept indices of each dim, with a few pieces of it beside it.

    `into`: where to put it, perhaps of another type.
    """
    result = tensor.new_empty(sliced_shape(tensor, kept)) if into is None else into
    for place, piece in pieces_of(tensor, kept):
        result[place].copy_(piece)
    return result


def pieces_of(tensor: torch.Tensor, kept: tuple[NDArray[np.int64] | None, ...]) -> Pieces:
    """The kept indices of each dim, a few at a time, with the place of each piece in the whole of them."""
    chosen = [(d, torch.from_numpy(k).to(tensor.device)) for d, k in enumerate(kept) if k is not None]
    if not chosen:
        yield ..., tensor
        return
    (first, rows), *others = chosen
    width = max(1, _BLOCK_BYTES * tensor.shape[first] // max(tensor.numel() * tensor.element_size(), 1))
    for start in range(0, len(rows), width):
        part = tensor.index_select(first, rows[start : start + width])
        for dim, index in others:
            part = part.index_select(dim, index)
        yield (*[slice(None)] * first, slice(start, start + part.shape[first])), part


def sliced_shape(tensor: torch.Tensor, kept: tuple[NDArray[np.int64] | None, ...]) -> tuple[int, ...]:
    return tuple(n if k is None else len(k) for n, k in zip(tensor.shape, kept, strict=True))


def attach(root: nn.Module, path: str, value: object) -> None:
    """Set a parameter, buffer or constant under a dotted name, making the modules in between."""
    *owners, leaf = path.split(".")
    for part in owners:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    elif isinstance(value, torch.Tensor):
        root.register_buffer(leaf, value)
    else:
        setattr(root, leaf, value)


def _resized(graph: TracedGraph, atoms: Mapping[Atom, NDArray[np.int64]]) -> fx.Graph:
    found = graph.inferred
    new = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    new.output(new.graph_copy(graph.captured.graph, mapping))
    new._codegen = graph.captured.graph._codegen
    widths = {a: len(k) for a, k in atoms.items()}

    def width(expr: Expr) -> int:
        return size_of(found.axes.resolve(expr), widths)

    def changed(expr: Expr) -> bool:
        return any(a in atoms for a in atoms_of(found.axes.resolve(expr)))

    for old, node in mapping.items():
        node.name, node.meta = old.name, {k: v for k, v in old.meta.items() if k in ("nn_module_stack", "stack_trace")}
        rule, op = found.rules.get(old), found.ops.get(old)
        if rule is not None and op is not None and rule.resize is not None and _touched(op, changed):
            step = Resize(op, node, width, changed)
            rule.resize(step)
            step.node.name = old.name
    return new


def _touched(op: Op, changed: Callable[[Expr], bool]) -> bool:
    every = [op.dims[t] for t in op.tensors()] + [op.out]
    return any(changed(e) for dims in every for d in (dims if isinstance(dims, list) else [dims]) for e in d)
