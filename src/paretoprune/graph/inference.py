"""Run every operator's rule over the captured graph, then the dead-value pass."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from paretoprune.graph.algebra import UNIT, Atom, Axes, Expr, Sum, atoms_of, factors_of
from paretoprune.graph.op import DeadView, Op, Rule, State, bind, keep_dead
from paretoprune.graph.opaque import leaf
from paretoprune.graph.positions import repeated_atoms
from paretoprune.graph.rules import RULES
from paretoprune.graph.sizes import Sizes

_GETITEM = RULES["getitem"]


@dataclass
class Inferred:
    """Dims of every node and parameter, over one assignment of the dynamic sizes.

    `samples` gives every size that stands for a dynamic one its size in a batch of one sample.
    """

    axes: Axes
    ops: dict[fx.Node, Op]
    rules: dict[fx.Node, Rule]
    dims: dict[fx.Node, Any]
    params: dict[str, tuple[Expr, ...]]
    samples: Mapping[int, int]
    notes: list[str] = field(default_factory=list)

    def resolved(self, name: str) -> tuple[Expr, ...]:
        return tuple(self.axes.resolve(e) for e in self.params[name])

    def flat(self, node: fx.Node) -> list[Expr]:
        """Dims of all outputs of a node."""
        dims = self.dims.get(node, ())
        return [e for d in dims for e in d] if isinstance(dims, list) else list(dims)


def infer(module: fx.GraphModule, frozen: Mapping[str, str], run: int = 0) -> Inferred:
    """Dims for all nodes of a captured graph. `frozen`: parameter or buffer -> why none of its dims may be pruned."""
    state = _Inference(module, frozen, run)
    for node in module.graph.nodes:
        state.visit(node)
    state.axes.settle()
    found = state.found
    _freeze_unwieldy(found)
    _freeze_idle(module, found)
    _freeze_unsound(found)
    return found


def where(node: fx.Node) -> str:
    """ "layer1.0 (conv2d)": the module that the user wrote and the operator."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()] if stack else []
    path = paths[-1].replace("L['self'].", "") if paths else ""
    name = str(node.target).split(".")[-2:][0] if node.op == "call_function" else node.name
    return f"{path} ({name})" if path else name


def paths_of(node: fx.Node) -> list[str]:
    """The modules that a node was captured in, outermost first; a repeated call is the same module."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(path).partition("@")[0] for path, _ in stack.values()]


class _Inference:
    def __init__(self, module: fx.GraphModule, frozen: Mapping[str, str], run: int):
        self.module, self.frozen = module, frozen
        self.sizes = Sizes(module.graph, run)
        self.axes = Axes()
        self.shapes: dict[fx.Node, Any] = {}
        self.found = Inferred(self.axes, {}, {}, {}, {}, self.sizes.samples)
        self.dims = self.found.dims
        self._by_storage: dict[Any, str] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self._freeze_all(_nodes(node.args), "it is an output of the network")
            return
        shape = self.sizes.shape(node.meta.get("val"))
        if node.op == "get_attr":
            tensor = _attribute(self.module, str(node.target))
            if isinstance(tensor, torch.Tensor):
                self._parameter(node, str(node.target), tensor)
            return
        if shape is None:
            self._no_tensor(node)
            return
        self.shapes[node] = shape
        if node.op == "placeholder":
            self.dims[node] = tuple(self._closed(s, "it is an input of the network") for s in shape)
            return
        self._apply(node)

    def _no_tensor(self, node: fx.Node) -> None:
        """Sizes of inputs carry no axis; anything else that reads a tensor and gives none may do anything."""
        read = _nodes((node.args, node.kwargs))
        of_input = "sym_size" in str(node.target) and all(n.op == "placeholder" for n in read)
        if node.op != "placeholder" and not of_input:
            why = _opaque(node) if "opaque" in node.meta else f"{where(node)} reads it as a number"
            self._freeze_all(read, why)

    def _parameter(self, node: fx.Node, name: str, tensor: torch.Tensor) -> None:
        self.shapes[node] = tuple(tensor.shape)
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        twin = self._by_storage.setdefault(key, name)
        params = self.found.params
        if twin not in params:
            params[twin] = tuple(
                UNIT if size == 1 else Atom(size, f"{twin}:{i}") for i, size in enumerate(tensor.shape)
            )
        params[name] = self.dims[node] = params[twin]
        complex_weight = tensor.is_complex() and isinstance(tensor, torch.nn.Parameter)
        why = "it is complex" if complex_weight else self.frozen.get(name, "")
        if why or 0 in tensor.shape:
            self._freeze_all([node], why or "it is empty")

    def _closed(self, size: int, why: str) -> Expr:
        expr: Expr = UNIT if size == 1 else Atom(size)
        self.axes.freeze(expr, why)
        return expr

    def _apply(self, node: fx.Node) -> None:
        rule, args = self._rule(node)
        why = self._refusal(node, rule, args)
        if rule is not None and not why:
            op = Op(node, args, self.axes, self.shapes, self.dims, self.sizes.samples, where(node))
            why = self._run(rule, op)
        if why:
            if "opaque" not in node.meta:
                self.found.notes.append(f"{why}: what it touches stays as it is")
            self._freeze_all(_nodes((node.args, node.kwargs)), why)
            self.dims[node] = self._all_closed(self.shapes[node], why)

    def _run(self, rule: Rule, op: Op) -> str:
        """Apply a rule. Why its result cannot be used: arguments that it was not made for."""
        node = op.node
        try:
            dims = rule.infer(op)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            return f"{where(node)} has no rule for such operands ({type(error).__name__})"
        if _sizes_of(dims) != self.shapes[node]:
            return f"{where(node)} has no rule for such operands"
        self.dims[node] = dims
        self.found.ops[node], self.found.rules[node] = op, rule
        return ""

    def _refusal(self, node: fx.Node, rule: Rule | None, args: dict[str, Any]) -> str:
        """Why a rule is not even tried."""
        if rule is None and "opaque" in node.meta:
            return _opaque(node)
        if rule is None:
            return f"{where(node)} has no rule ({node.target})"
        operands = [v for v in _nodes(tuple(args.values())) if isinstance(v.meta.get("val"), torch.Tensor)]
        if any(v not in self.dims for v in operands):
            return f"{where(node)} has no rule for such operands"
        shapes = [self.shapes[v] for v in operands if v in self.shapes]
        empty = _empty(self.shapes[node]) or any(_empty(s) and s != (0,) for s in shapes)
        if empty and not rule.empty:
            return f"{where(node)} works on an empty tensor"
        return ""

    def _rule(self, node: fx.Node) -> tuple[Rule | None, dict[str, Any]]:
        if node.target in (operator.getitem, leaf) and node.args[0] in self.dims:
            return _GETITEM, {"self": node.args[0]}
        rule = RULES.get(str(node.target)) if node.op == "call_function" else None
        return rule, (bind(node) if rule is not None else {})

    def _all_closed(self, shape: Any, why: str) -> Any:
        if isinstance(shape, list):
            return [self._all_closed(s, why) for s in shape]
        return tuple(self._closed(s, why) for s in shape)

    def _freeze_all(self, nodes: Iterable[fx.Node], why: str) -> None:
        for node in nodes:
            for expr in self.found.flat(node):
                self.axes.freeze(expr, why)


def _opaque(node: fx.Node) -> str:
    return f"'{node.target}' cannot be captured ({node.meta['opaque']})"


def _nodes(tree: Any) -> list[fx.Node]:
    found: list[fx.Node] = []

    def add(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.map_arg(tree, add)
    return found


def _sizes_of(dims: Any) -> Any:
    if isinstance(dims, list):
        return [_sizes_of(d) for d in dims]
    return tuple(e.size for e in dims)


def _empty(shape: Any) -> bool:
    return any(_empty(s) for s in shape) if isinstance(shape, list) else 0 in shape


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _freeze_unwieldy(found: Inferred) -> None:
    """Too many pieces, no list of entries, or a dynamic size that is not simply proportional to what is pruned."""
    for name in found.params:
        for expr in found.resolved(name):
            found.axes.limit_segments(expr)
            for atom in repeated_atoms(expr):
                found.axes.freeze(atom, "it is multiplied by itself")
    for node in found.ops:
        for expr in found.flat(node):
            for factor in factors_of(found.axes.resolve(expr)):
                if isinstance(factor, Sum) and any(a.size in found.samples for a in atoms_of(factor)):
                    found.axes.freeze(factor, "it is joined to a dynamic size")


def _freeze_idle(module: fx.GraphModule, found: Inferred) -> None:
    """An axis of buffers that nothing reads or that only list numbers (positions, masks) holds nothing to prune."""
    groups: dict[int, list[fx.Node]] = {}
    for node in found.dims:
        if node.op == "get_attr":
            groups.setdefault(id(found.dims[node]), []).append(node)
    idle: dict[Atom, bool] = {}
    for nodes in groups.values():
        tensor = _attribute(module, str(nodes[0].target))
        weighs = any(n.users for n in nodes) and (tensor.is_floating_point() or tensor.is_complex())
        for atom in (a for e in found.resolved(str(nodes[0].target)) for a in atoms_of(e)):
            idle[atom] = idle.get(atom, True) and not weighs
    for atom in (a for a, nothing in idle.items() if nothing):
        found.axes.freeze(atom, "only numbers of positions, or buffers that nothing reads, have it")


def _freeze_unsound(found: Inferred) -> None:
    """The dead-value pass (DESIGN §1.2): freeze every atom whose removed positions would be seen."""
    atoms = {n: frozenset(a for e in found.flat(n) for a in atoms_of(found.axes.resolve(e))) for n in found.dims}
    touching: dict[Atom, list[fx.Node]] = {}
    for node in found.dims:
        operands = found.ops[node].tensors() if node in found.ops else []
        for atom in atoms[node].union(*(atoms[t] for t in operands)):
            touching.setdefault(atom, []).append(node)
    known: _AtomsOf = {}
    live = {a for name in found.params for e in found.resolved(name) for a in atoms_of(e) if not found.axes.frozen(a)}
    for atom in live:
        why = _refusal(found, atom, touching[atom], known)
        if why:
            found.axes.freeze(atom, why)


_AtomsOf = dict[int, tuple[Expr, frozenset[Atom]]]
"""By the id of an expression, which is held so that no other one takes its place."""


def _refusal(found: Inferred, atom: Atom, nodes: list[fx.Node], known: _AtomsOf) -> str:
    """Follow what stands at removed positions of `atom` through the nodes that it touches."""
    states: dict[fx.Node, State] = {}

    def contains(expr: Expr) -> bool:
        if id(expr) not in known:
            known[id(expr)] = expr, frozenset(atoms_of(found.axes.resolve(expr)))
        return atom in known[id(expr)][1]

    for node in nodes:
        if node.op == "get_attr":
            states[node] = State.ZERO
        elif node in found.ops:
            view = DeadView(found.ops[node], atom, contains, states)
            states[node] = found.rules[node].dead(view)
            if view.refusal:
                return view.refusal
            met = states[node] == State.ZERO and _meets_itself(found, atom, node, contains)
            if met and not _copies_square(found, atom, node, contains):
                states[node] = State.UNKNOWN  # zero where one of the two is removed says nothing of the other
    return ""


def _copies_square(found: Inferred, atom: Atom, node: fx.Node, contains: Callable[[Expr], bool]) -> bool:
    """Does an operator lay out entries of tensors, such as a transposed recurrent weight, that were so already?

    Those are zero where either of the two is removed, and no layout changes that.
    """
    held = [t for t in found.ops[node].tensors() if any(contains(e) for e in found.flat(t))]
    return found.rules[node].dead is keep_dead and all(_meets_itself(found, atom, t, contains) for t in held)


def _meets_itself(found: Inferred, atom: Atom, node: fx.Node, contains: Callable[[Expr], bool]) -> bool:
    """Does the atom stand in two dims, or twice along one product, of an output?"""
    dims = found.dims[node]
    for output in dims if isinstance(dims, list) else [dims]:
        holding = [e for e in output if contains(e)]
        if len(holding) > 1 or any(atom in repeated_atoms(found.axes.resolve(e)) for e in holding):
            return True
    return False
