"""One operator of the captured graph as a rule sees it, and what a rule is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from typing import Any

import torch
from torch import fx

from paretoprune.core.axis import Role
from paretoprune.core.errors import PlanError
from paretoprune.graph.algebra import UNIT, Atom, Axes, Expr, atoms_of, factors_of

Dims = tuple[Expr, ...]
WHOLE = "whole"
"""Memo of an operator whose statistics run over removed positions too, so that `masked` is not asked."""


class State(IntEnum):
    """What stands at the removed positions of an axis in the dead-channel reference."""

    ZERO = 0
    UNKNOWN = 1


@dataclass
class Op:
    """A node with its arguments bound to the schema's names.

    `shapes` and `dims` are keyed by node; a node with several outputs holds a list. `samples` gives every size that
    stands for a dynamic one its size in a batch of one sample. `memo` carries what `infer` found out to the later
    phases, as expressions; `roles` says of (parameter, dim) what it is to its axes where "out" and "into" in the memo
    do not.
    """

    node: fx.Node
    args: dict[str, Any]
    axes: Axes
    shapes: dict[fx.Node, Any]
    dims: dict[fx.Node, Any]
    samples: Mapping[int, int]
    where: str
    memo: dict[str, Expr] = field(default_factory=dict)
    roles: dict[tuple[fx.Node, int], Role] = field(default_factory=dict)

    @property
    def out_shape(self) -> Any:
        return self.shapes[self.node]

    @property
    def out(self) -> Any:
        return self.dims[self.node]

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.dims

    def dims_of(self, value: fx.Node) -> Dims:
        result: Dims = self.dims[value]
        return result

    def shape_of(self, value: fx.Node) -> tuple[int, ...]:
        result: tuple[int, ...] = self.shapes[value]
        return result

    def fresh(self, size: int) -> Expr:
        return UNIT if size == 1 else Atom(size)

    def closed(self, size: int, why: str) -> Expr:
        """A new axis that may not be pruned."""
        expr = self.fresh(size)
        self.axes.freeze(expr, why)
        return expr

    def unify(self, a: Expr, b: Expr) -> None:
        self.axes.unify(a, b, f"its layout cannot be matched at {self.where}")

    def freeze(self, exprs: Sequence[Expr] | Expr, why: str) -> None:
        for expr in (exprs,) if not isinstance(exprs, (tuple, list)) else exprs:
            self.axes.freeze(expr, f"{why} at {self.where}")

    def resolve(self, expr: Expr) -> Expr:
        return self.axes.resolve(expr)

    def is_dynamic(self, expr: Expr) -> bool:
        return any(a.size in self.samples for a in atoms_of(self.resolve(expr)))

    def per_sample(self, size: int) -> int:
        """A size as it is in a batch of one sample."""
        return self.samples.get(size, size)

    def dim_index(self, value: Any, ndim: int) -> int:
        return int(value) % ndim if ndim else 0

    def tensors(self) -> list[fx.Node]:
        """Every tensor operand, lists flattened."""
        found: list[fx.Node] = []
        for value in self.args.values():
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if self.is_tensor(item):
                    found.append(item)
        return found


class DeadView:
    """The dead-value pass at one operator, for one atom."""

    def __init__(self, op: Op, atom: Atom, contains: Callable[[Expr], bool], states: dict[fx.Node, State]):
        self.op, self.atom, self.contains, self._states = op, atom, contains, states
        self.refusal = ""

    def has(self, value: Any) -> bool:
        """Does the atom stand in a dimension of this operand?"""
        return self.op.is_tensor(value) and any(self.contains(e) for e in _flat(self.op.dims[value]))

    def state(self, value: Any) -> State | None:
        """The operand's state, None where the atom does not stand in it."""
        return self._states.get(value, State.UNKNOWN) if self.has(value) else None

    def join(self, values: Sequence[Any]) -> State:
        found = [s for v in values if (s := self.state(v)) is not None]
        return max(found, default=State.UNKNOWN)

    def refuse(self, why: str) -> State:
        self.refusal = self.refusal or f"{why} at {self.op.where}"
        return State.UNKNOWN

    def need_zero(self, value: fx.Node, dims: Sequence[Expr], why: str) -> None:
        """The atom is summed over in `dims` of `value`: what is removed must have been zero."""
        if any(self.contains(e) for e in dims) and self.state(value) != State.ZERO:
            self.refuse(why)


def _flat(dims: Any) -> list[Expr]:
    return [e for d in dims for e in d] if isinstance(dims, list) else list(dims)


def keep_dead(view: DeadView) -> State:
    """Removed positions hold what they held before: layouts, copies, pooling."""
    return view.join(view.op.tensors())


def unknown_dead(view: DeadView) -> State:
    return State.UNKNOWN


@dataclass
class Resize:
    """Surgery at one operator: read the new sizes, write the new arguments."""

    op: Op
    node: fx.Node
    """The node in the new graph."""
    width: Callable[[Expr], int]
    changed: Callable[[Expr], bool]

    def get(self, name: str) -> Any:
        """The argument in the new graph."""
        return bind(self.node)[name]

    def set(self, **new: Any) -> None:
        """Replace arguments by their schema names."""
        args = bind(self.node) | new
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        positional = tuple(args[a.name] for a in schema if not a.kwarg_only)
        self.node.args = positional
        named = {*self.node.kwargs, *new}
        self.node.kwargs = {a.name: args[a.name] for a in schema if a.kwarg_only and a.name in named}

    def sizes(self, old: Sequence[Any], exprs: Sequence[Expr], *, inferred: bool = False) -> list[Any]:
        """A list of size arguments rewritten for the new widths of `exprs`; -1 and unchanged entries stay.

        `inferred`: -1 means "what is left", as in a view; it then takes the place of a dynamic size.
        """
        new = [
            self.width(e) if isinstance(s, int) and s != -1 and self.changed(e) else s
            for s, e in zip(old, exprs, strict=True)
        ]
        scaled = [i for i, s in enumerate(old) if isinstance(s, fx.Node) and self.changed(exprs[i])]
        if scaled and inferred:
            static = [i for i, s in enumerate(old) if s == -1 and not self.op.is_dynamic(exprs[i])]
            if static:
                new[static[0]] = self.width(exprs[static[0]])
            if static or -1 not in new:
                new[scaled.pop(0)] = -1
        for i in scaled:
            new[i] = self._scaled(old[i], exprs[i])
        return new

    def _scaled(self, size: fx.Node, expr: Expr) -> fx.Node:
        """A dynamic size, in which the changed factors are static: divided by their old sizes, times the new ones."""
        changed = [f for f in factors_of(self.op.resolve(expr)) if self.changed(f)]
        if any(self.op.is_dynamic(f) for f in changed):
            raise PlanError(f"a dynamic size at {self.op.where} mixes what is pruned with what is not: leave it whole")
        old, new = prod(f.size for f in changed), prod(self.width(f) for f in changed)
        graph = self.node.graph
        with graph.inserting_before(self.node):
            rest = graph.call_function(operator.floordiv, (size, old))
            return graph.call_function(operator.mul, (rest, new))


Infer = Callable[[Op], Any]
MacTerm = tuple[int, tuple[Expr, ...]]


@dataclass(frozen=True)
class Rule:
    """Everything that is known of one operator. A new operator is a new rule and no edit anywhere else.

    `infer` relates the dims of operands and outputs. `dead` says what stands at removed positions. `resize` rewrites
    size arguments. `macs` lists products of dims that are multiplied and accumulated. `layer` describes a contraction
    with a parameter. `rows` unrolls the input of a contraction into a matrix and `reads` gives the (weight, bias) pairs
    that it is multiplied with. `masked` computes a normalisation whose statistics are
    taken over kept positions. `mode` is the index of an argument that is True in training alone. `empty`: a dim of
    size 0 among operands or outputs is nothing out of the ordinary.
    """

    infer: Infer
    dead: Callable[[DeadView], State] = keep_dead
    resize: Callable[[Resize], None] | None = None
    macs: Callable[[Op], list[MacTerm]] | None = None
    layer: Callable[[Op], Any] | None = None
    rows: Callable[[Op, torch.Tensor], torch.Tensor] | None = None
    reads: Callable[[Op], list[tuple[Any, Any]]] | None = None
    masked: Callable[..., Any] | None = None
    mode: int | None = None
    empty: bool = False


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments by schema name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    bound: dict[str, Any] = {}
    positional = list(node.args)
    for argument in schema:
        if positional and not argument.kwarg_only:
            bound[argument.name] = positional.pop(0)
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound
