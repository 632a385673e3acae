"""What surgery did to the sizes within each module: old size to new ones, and where each was seen.

Equal sizes prove nothing here: this only proposes values, and a comparison decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from paretoprune.graph.algebra import Atom, Expr, Product, atoms_of, concatenate, multiply
from paretoprune.graph.inference import paths_of
from paretoprune.graph.positions import size_of
from paretoprune.graph.surgery import Cut
from paretoprune.graph.traced import TracedGraph

Kinds = frozenset[str]
_SIZE_ARGUMENTS = frozenset(
    {"size", "shape", "sizes", "split_size", "split_sizes", "normalized_shape", "num_groups", "groups", "repeats"}
)
_LARGEST = 100_000
"""Dynamic sizes are primes above it."""
_RUN = 4
"""Factors of a product that are looked at together."""


@dataclass
class Evidence:
    """`literal`: numbers that stood in the operators' arguments, old -> new. `exprs`: sizes of dims and their parts,
    old -> new -> the kinds of axes that they are made of.
    """

    literal: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    exprs: dict[int, dict[int, set[Kinds]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def values(self, old: int) -> list[int]:
        """Every new size that `old` was seen to become, literals first."""
        literal = [new for new, _ in self.literal[old].most_common()] if old in self.literal else []
        return list(dict.fromkeys([*literal, *self.exprs.get(old, ())]))

    def add(self, other: Evidence) -> None:
        for old, counts in other.literal.items():
            self.literal[old].update(counts)
        for old, found in other.exprs.items():
            for new, kinds in found.items():
                self.exprs[old][new] |= kinds


def nodes_by_module(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """The operators that stand in a module's own forward, by its path."""
    result: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_function" and (paths := paths_of(node)):
            result[paths[-1]].append(node)
    return dict(result)


def axis_widths(graph: TracedGraph, cut: Cut) -> dict[Atom, int]:
    """How many positions of each axis the cut kept, from the parameters' kept indices."""
    widths: dict[Atom, int] = {}
    for axis in graph.axes:
        member = next((m for m in axis.members if m.name in cut.kept), None)  # a dropped block takes some with it
        kept = None if member is None else cut.kept[member.name][member.dim]
        if axis.prunable and member is not None and kept is not None:
            widths[graph.atoms[axis.id]] = int(np.isin(member.entries, kept).any(axis=1).sum())
    return widths


def gather(graph: TracedGraph, cut: Cut) -> dict[str, Evidence]:
    """Evidence by module path: from its own operators, its own parameters and those of its children."""
    reader = _Reader(graph, axis_widths(graph, cut))
    after = {n.name: n for n in cut.program.module.graph.nodes}
    result: dict[str, Evidence] = defaultdict(Evidence)
    for path, nodes in nodes_by_module(graph.captured.graph).items():
        for node in nodes:
            reader.literals(result[path], node, after.get(node.name))
            for expr in reader.dims(node):
                reader.sizes(result[path], expr)
    for name in graph.inferred.params:
        owner = name.rpartition(".")[0]
        for path in dict.fromkeys((owner, owner.rpartition(".")[0])):
            for expr in graph.inferred.resolved(name):
                reader.sizes(result[path], expr)
    return dict(result)


class _Reader:
    def __init__(self, graph: TracedGraph, widths: Mapping[Atom, int]):
        self._found, self._widths = graph.inferred, widths
        self._kinds = {graph.atoms[a.id]: a.kind for a in graph.axes}

    def dims(self, node: fx.Node) -> Iterator[Expr]:
        op = self._found.ops.get(node)
        for tensor in [] if op is None else [*op.tensors(), node]:
            for expr in self._found.flat(tensor):
                yield self._found.axes.resolve(expr)

    def sizes(self, evidence: Evidence, expr: Expr) -> None:
        for part in _parts(expr):
            if 1 < part.size < _LARGEST:
                kinds = frozenset(self._kinds.get(a, "frozen") for a in atoms_of(part))
                evidence.exprs[part.size][size_of(part, self._widths)].add(kinds)

    def literals(self, evidence: Evidence, old: fx.Node, new: fx.Node | None) -> None:
        schema = getattr(old.target, "_schema", None)
        if new is None or schema is None or new.target is not old.target:
            return
        for argument, before, after in zip(schema.arguments, old.args, new.args, strict=False):
            for a, b in _pairs(before, after):
                if a != b or argument.name in _SIZE_ARGUMENTS:
                    evidence.literal[a][b] += 1


def _pairs(before: Any, after: Any) -> Iterable[tuple[int, int]]:
    lists = isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after)
    pairs = zip(before, after, strict=True) if lists else [(before, after)]
    return [(a, b) for a, b in pairs if _size(a) and _size(b)]


def _size(value: Any) -> bool:
    return type(value) is int and 0 < value < _LARGEST


def _parts(expr: Expr) -> Iterator[Expr]:
    """The expression, runs of its factors or terms, and theirs."""
    yield expr
    if isinstance(expr, Atom):
        return
    pieces = expr.factors if isinstance(expr, Product) else expr.terms
    for first in range(len(pieces)):
        yield from _parts(pieces[first])
        for run in range(2, min(_RUN, len(pieces) - first) + 1):
            if run < len(pieces):
                some = pieces[first : first + run]
                yield multiply(*some) if isinstance(expr, Product) else concatenate(*some)
