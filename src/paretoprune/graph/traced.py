"""The captured network with its axes: what `pp.trace` returns."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from paretoprune.core.axis import Axis, AxisMember, Role
from paretoprune.core.errors import PlanError
from paretoprune.core.graph import BatchNorm, Contraction, Example
from paretoprune.core.layers import LayerSpec
from paretoprune.graph.algebra import Atom, Expr, Product, atoms_of, entries_of, factors_of, size_of, terms_of
from paretoprune.graph.capture import batched, capture
from paretoprune.graph.inference import Inferred, infer
from paretoprune.graph.model import check_example, check_model, private_copy, shared_storage, untouched_rng
from paretoprune.graph.op import MacTerm, Op, bind
from paretoprune.graph.program import GraphProgram, runnable

_ADDITIONS = {"aten.add.Tensor", "aten.sub.Tensor"}


@dataclass(frozen=True)
class TracedGraph:
    """core.graph.Graph over the ATen graph of `torch.export`."""

    axes: tuple[Axis, ...]
    program: GraphProgram
    fingerprint: str
    example: Example
    notes: tuple[str, ...]
    captured: fx.GraphModule = field(repr=False)
    inferred: Inferred = field(repr=False)
    atoms: Mapping[str, Atom] = field(repr=False)
    """Axis id -> atom, for every axis."""

    def _widths(self, widths: Mapping[str, int] | None) -> dict[Atom, int]:
        if unknown := set(widths or {}) - set(self.atoms):
            raise PlanError(f"there is no axis {sorted(unknown)}; this network has {', '.join(self.atoms)}")
        return {self.atoms[axis]: width for axis, width in (widths or {}).items()}

    def macs(self, widths: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates of one sample at these widths, other dynamic dims as in the example."""
        by_atom = self._widths(widths)
        samples = self.inferred.samples
        return sum(factor * prod(_per_sample(e, by_atom, samples) for e in exprs) for factor, exprs in self._mac_terms)

    @cached_property
    def _mac_terms(self) -> list[MacTerm]:
        found = self.inferred
        return [
            (factor, tuple(found.axes.resolve(e) for e in exprs))
            for node, op in found.ops.items()
            if (count := found.rules[node].macs) is not None
            for factor, exprs in count(op)
        ]

    def parameters(self, widths: Mapping[str, int] | None = None) -> int:
        """Parameters at these widths; tied ones count once."""
        by_atom = self._widths(widths)
        named = dict(self.captured.named_parameters())
        return sum(
            prod(size_of(e, by_atom) for e in self.inferred.resolved(name))
            if name in self.inferred.params
            else p.numel()
            for name, p in named.items()
        )

    def layers(self, widths: Mapping[str, int] | None = None) -> tuple[LayerSpec, ...]:
        """Shapes of the convolutions and linear layers at these widths, in the order of the graph."""
        by_atom = self._widths(widths)
        specs = []
        for op, spec in self._layer_ops:
            groups, into, out = (size_of(op.resolve(op.memo[k]), by_atom) for k in ("groups", "into", "out"))
            specs.append(replace(spec, inputs=groups * into, outputs=out, groups=groups))
        return tuple(specs)

    @cached_property
    def _layer_ops(self) -> list[tuple[Op, LayerSpec]]:
        found = self.inferred
        return [
            (op, spec)
            for node, op in found.ops.items()
            if (describe := found.rules[node].layer) is not None and (spec := describe(op)) is not None
        ]


def _per_sample(expr: Expr, widths: Mapping[Atom, int], samples: Mapping[int, int]) -> int:
    """The size of an expression at these widths, for one sample."""
    if isinstance(expr, Atom):
        return widths.get(expr, samples.get(expr.size, expr.size))
    if isinstance(expr, Product):
        return prod(_per_sample(f, widths, samples) for f in expr.factors)
    return sum(_per_sample(t, widths, samples) for t in expr.terms)


def trace(model: nn.Module, example: Any, dynamic: Mapping[str, Iterable[int]] | None = None) -> TracedGraph:
    """Capture `model` and find its axes. The model is not changed.

    `example`: a tensor, a tuple of positional inputs, or a dict of keyword inputs; dimension 0 of each is dynamic.
    `dynamic`: further dynamic dims by input name. Raises ModelError, CaptureError, DataError.
    """
    check_model(model)
    inputs = Example.of(example)
    check_example(model, inputs)
    with untouched_rng(model):
        clone, notes = private_copy(model)
        captured = capture(clone, inputs, dynamic)
    return analyse(captured.module, batched(inputs), (*notes, *captured.notes), shared_storage(model))


def analyse(
    captured: fx.GraphModule, example: Example, notes: tuple[str, ...] = (), frozen: Mapping[str, str] | None = None
) -> TracedGraph:
    """Axes of a captured graph. `frozen`: parameter or buffer -> why it must stay as it is."""
    frozen = {**_unreached(captured), **(frozen or {})}
    found, second = (infer(captured, frozen, run) for run in (0, 1))
    _agree(found, second)
    atoms, axes = _axes(found)
    unreached = [f"{why}: it stays as it is" for why in frozen.values()]
    program = GraphProgram(runnable(captured), _contractions(found), _batch_norms(found))
    every = (*notes, *dict.fromkeys(found.notes), *unreached)
    return TracedGraph(axes, program, _fingerprint(found, axes), example, every, captured, found, atoms)


def _unreached(captured: fx.GraphModule) -> dict[str, str]:
    """Parameters that no operator reads, under none of their names."""
    tensors = tensors_of(captured)
    read = {
        id(tensors[str(n.target)])
        for n in captured.graph.nodes
        if n.op == "get_attr" and n.users and str(n.target) in tensors
    }
    names = dict(captured.named_parameters(remove_duplicate=False))
    return {n: f"nothing reads parameter '{n}'" for n, p in names.items() if id(p) not in read}


def _agree(a: Inferred, b: Inferred) -> None:
    """What two dynamic sizes see differently is a coincidence of sizes: freeze it."""
    for name in a.params:
        for x, y in zip(a.resolved(name), b.resolved(name), strict=True):
            if _shape_of(a, x) != _shape_of(b, y):
                a.axes.freeze(x, "two batch sizes relate it differently")


def _shape_of(found: Inferred, expr: Expr) -> list[tuple[int, bool]]:
    """Sizes of the atoms that may be pruned, with a single size for each run of those that may not."""
    result: list[tuple[int, bool]] = []
    for atom in atoms_of(expr):
        closed = bool(found.axes.frozen(atom))
        if not (closed and result and result[-1][1]):
            result.append((0 if closed else atom.size, closed))
    return result


def _axes(found: Inferred) -> tuple[dict[str, Atom], tuple[Axis, ...]]:
    members: dict[Atom, list[AxisMember]] = {}
    roles = _roles(found)
    done: set[int] = set()
    for name in found.params:
        if id(found.params[name]) in done:
            continue
        done.add(id(found.params[name]))
        for dim, expr in enumerate(found.resolved(name)):
            for atom in dict.fromkeys(atoms_of(expr)):
                role = roles.get((id(found.params[name]), dim, atom), "each")
                entries = entries_of(expr, atom) if not found.axes.frozen(atom) else np.zeros((0, 0), np.int64)
                members.setdefault(atom, []).append(AxisMember(name, dim, role, entries))
    residual, within = _residual(found), _within(found)
    atoms: dict[str, Atom] = {}
    axes: list[Axis] = []
    for atom, places in members.items():
        why = found.axes.frozen(atom)
        kind = "frozen" if why else "residual" if atom in residual else "within" if atom in within else "channel"
        if why and _trivial(why):
            continue
        name = _axis_id(places, atoms)
        atoms[name] = atom
        axes.append(Axis(name, atom.size, not why, why, kind, tuple(places)))
    return atoms, tuple(axes)


def _trivial(why: str) -> bool:
    """Kernel positions are no axis that anybody would look for."""
    return why.startswith("its positions are a kernel's")


def _axis_id(places: list[AxisMember], taken: Mapping[str, Atom]) -> str:
    """Named after the module that makes the axis; a number tells several apart."""
    maker = next((m for m in places if m.role == "out"), places[0])
    owner = maker.name.rpartition(".")[0] or maker.name
    name, k = owner, 2
    while name in taken:
        name, k = f"{owner}#{k}", k + 1
    return name


def _roles(found: Inferred) -> dict[tuple[int, int, Atom], Role]:
    """Which parameters make an axis and which sum over it, by id of the parameter's dims: tied ones are one."""
    roles: dict[tuple[int, int, Atom], Role] = {}
    for op in found.ops.values():
        if "into" not in op.memo:
            continue
        made, summed = (set(atoms_of(op.resolve(op.memo[k]))) for k in ("out", "into"))
        for tensor in op.tensors():
            if tensor.op != "get_attr":
                continue
            name = str(tensor.target)
            for dim, expr in enumerate(found.resolved(name)):
                for atom in atoms_of(expr):
                    if atom in made:
                        roles[id(found.params[name]), dim, atom] = "out"
                    elif atom in summed:
                        roles.setdefault((id(found.params[name]), dim, atom), "in")
    return roles


def _residual(found: Inferred) -> set[Atom]:
    """Axes carried by both operands of a sum of two activations."""
    active = _active(found)
    result: set[Atom] = set()
    for node, op in found.ops.items():
        tensors = op.tensors()
        if str(node.target) in _ADDITIONS and len(tensors) == 2 and all(t in active for t in tensors):
            sides = [{a for e in op.dims_of(t) for a in atoms_of(op.resolve(e))} for t in tensors]
            result |= sides[0] & sides[1]
    return result


def _active(found: Inferred) -> set[fx.Node]:
    """Nodes that depend on an input."""
    result: set[fx.Node] = set()
    for node in found.dims:
        if node.op == "placeholder" or any(n in result for n in node.all_input_nodes):
            result.add(node)
    return result


def _within(found: Inferred) -> set[Atom]:
    """Inner factors of a product whose outer factor can be pruned too."""
    result: set[Atom] = set()
    for name in found.params:
        for expr in found.resolved(name):
            for term in terms_of(expr):
                if isinstance(term, Product):
                    result |= _inner_atoms(found, factors_of(term))
    return result


def _inner_atoms(found: Inferred, factors: list[Expr]) -> set[Atom]:
    outer_open = False
    inner: set[Atom] = set()
    for factor in factors:
        atoms = set(atoms_of(factor))
        if outer_open:
            inner |= atoms
        outer_open = outer_open or any(not found.axes.frozen(a) for a in atoms)
    return inner


def _contractions(found: Inferred) -> tuple[Contraction, ...]:
    """Contractions without groups whose weight is a parameter of their own."""
    uses = Counter(id(found.params[str(n.target)]) for n in found.dims if n.op == "get_attr" for _ in n.users)
    result: list[Contraction] = []
    for node, op in found.ops.items():
        rule = found.rules[node]
        weight = op.args["weight"] if rule.rows is not None and rule.layer is not None else None
        if rule.rows is None or rule.layer is None or weight is None or weight.op != "get_attr":
            continue
        spec = rule.layer(op)
        if spec is not None and spec.groups == 1 and uses[id(found.params[weight.target])] == 1:
            result.append(_contraction(op, rule.rows, str(weight.target)))
    return tuple(result)


def _contraction(op: Op, rows: Callable[[Op, torch.Tensor], torch.Tensor], weight: str) -> Contraction:
    bias = op.args.get("bias")
    readers = list(op.node.users)
    alone = len(readers) == 1 and _is_batch_norm(readers[0])
    return Contraction(
        node=op.node.name,
        weight=weight,
        bias=str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None,
        input_dim=1,
        rows=lambda x: rows(op, x),
        matrix=lambda w: w.reshape(w.shape[0], -1),
        unmatrix=lambda m, shape: m.reshape(shape),
        batch_norm=readers[0].name if alone else None,
    )


def _is_batch_norm(node: fx.Node) -> bool:
    """A batch normalisation by running statistics that are buffers of its own."""
    if str(node.target) != "aten.batch_norm.default":
        return False
    args = bind(node)
    return all(isinstance(args[k], fx.Node) and args[k].op == "get_attr" for k in ("running_mean", "running_var"))


def _only_norm(node: fx.Node) -> str | None:
    """The batch norm that alone reads what the node gives."""
    users = list(node.users)
    alone = len(users) == 1 and str(users[0].target) == "aten.batch_norm.default" and users[0].args[0] is node
    return users[0].name if alone else None


def _batch_norms(found: Inferred) -> tuple[BatchNorm, ...]:
    return tuple(
        BatchNorm(n.name, str(op.args["running_mean"].target), str(op.args["running_var"].target))
        for n, op in found.ops.items()
        if _is_batch_norm(n)
    )


def _fingerprint(found: Inferred, axes: tuple[Axis, ...]) -> str:
    text = repr([(n, [e.size for e in d]) for n, d in found.params.items()])
    text += repr([(a.id, a.size, a.prunable, [(m.name, m.dim) for m in a.members]) for a in axes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name, tied ones under each of theirs."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}
