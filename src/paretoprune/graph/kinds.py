"""What an axis is called: heads, head size, KV groups, recurrent units, experts, the residual stream.

Read off the operators that an axis passes through, never off its size or its name. The first that fits counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from torch import fx

from paretoprune.graph.algebra import Atom, Expr, Product, Sum, atoms_of, factors_of, terms_of
from paretoprune.graph.inference import Inferred
from paretoprune.graph.op import Op
from paretoprune.graph.residual import Flow

_SOFTMAX = frozenset({"aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default"})
_FUSED = "aten.scaled_dot_product_attention.default"
_RECURRENT = ("aten.lstm.", "aten.gru.", "aten.rnn_tanh.", "aten.rnn_relu.", "aten.lstm_cell.", "aten.gru_cell.")
_EMBEDDING = ("aten.embedding.", "aten.embedding_bag.", "aten._embedding_bag")
_REACH = 64
"""Nodes that are looked at between a softmax and the products before and behind it."""


def kinds_of(found: Inferred) -> dict[Atom, str]:
    """The kind of every atom that has a name of its own; any other one is "channel"."""
    reader = _Reader(found)
    kinds: dict[Atom, str] = {}
    for kind, atoms in reader.named():
        for atom in atoms:
            kinds.setdefault(atom, kind)
    return kinds


class _Reader:
    def __init__(self, found: Inferred):
        self.found = found
        self.flow = Flow(found)
        self.active = self.flow.active

    def named(self) -> Iterator[tuple[str, Iterable[Atom]]]:
        """(kind, atoms), the most telling first."""
        attention = [self._fused(op) for op in self._ops(_FUSED)]
        attention += [a for node in self.found.ops if str(node.target) in _SOFTMAX if (a := self._spelled(node))]
        for heads, sizes in attention:
            yield from self._heads(heads)
            paired = self._repeated(sizes)
            yield "rotary pairs", paired
            yield "head size", [a for e in sizes for a in self._open(e)]
        yield from self._recurrent()
        yield "experts", self._experts()
        yield "residual", self._residual()
        yield "embedding", self._embedding()
        yield "within", self._within()

    # -- attention -------------------------------------------------------------------------------------------------

    def _fused(self, op: Op) -> tuple[list[Expr], list[Expr]]:
        query, value = op.dims_of(op.args["query"]), op.dims_of(op.args["value"])
        return [op.resolve(e) for e in query[:-2]], [op.resolve(query[-1]), op.resolve(value[-1])]

    def _spelled(self, softmax: fx.Node) -> tuple[list[Expr], list[Expr]] | None:
        """Products of two activations before and behind a softmax."""
        before = self._product(softmax, backward=True)
        behind = self._product(softmax, backward=False)
        if before is None or behind is None:
            return None
        scores = [self.found.axes.resolve(e) for e in self.found.flat(softmax)]
        shared = {a for e in scores for a in atoms_of(e)}
        sizes = [
            self.found.axes.resolve(e)
            for n in (before, behind)
            for t in (*n.all_input_nodes, n)
            for e in self.found.flat(t)
        ]
        return scores, [e for e in sizes if not shared & set(atoms_of(e))]

    def _product(self, start: fx.Node, *, backward: bool) -> fx.Node | None:
        """The nearest contraction of two activations."""
        queue, seen = deque([start]), {start}
        while queue and len(seen) < _REACH:
            node = queue.popleft()
            for other in node.all_input_nodes if backward else node.users:
                if other in seen or other not in self.found.ops:
                    continue
                seen.add(other)
                if self.found.rules[other].macs is None:
                    queue.append(other)
                elif sum(t in self.active for t in self.found.ops[other].tensors()) > 1:
                    return other
        return None

    def _heads(self, dims: list[Expr]) -> Iterator[tuple[str, Iterable[Atom]]]:
        """One open factor: heads. Two: groups that share keys and values, and the query heads within a group."""
        for expr in dims:
            for term in terms_of(expr):
                factors = [f for f in factors_of(term) if list(self._open(f))]
                names = ("heads",) if len(factors) == 1 else ("kv groups", *("query heads",) * (len(factors) - 1))
                for factor, name in zip(factors, names, strict=False):
                    yield name, list(self._open(factor))

    def _repeated(self, exprs: list[Expr]) -> list[Atom]:
        """Atoms that stand twice in one sum: both halves of a rotary pair."""
        result: list[Atom] = []
        for expr in exprs:
            for part in factors_of(expr) if isinstance(expr, Product) else [expr]:
                if isinstance(part, Sum):
                    seen = list(atoms_of(part))
                    result += [a for a in seen if seen.count(a) > 1]
        return result

    # -- others ----------------------------------------------------------------------------------------------------

    def _recurrent(self) -> Iterator[tuple[str, Iterable[Atom]]]:
        for op in self.found.ops.values():
            if str(op.node.target).startswith(_RECURRENT):
                weights = [t for t in op.tensors() if t.op == "get_attr"]
                yield "rnn hidden", [a for t in weights[1:2] for e in op.dims_of(t)[1:] for a in self._open(e)]
                yield "rnn hidden", [a for t in weights[:1] for e in op.dims_of(t)[:1] for a in self._open(e)]

    def _experts(self) -> list[Atom]:
        """The batch dimension of a product with a stack of matrices."""
        result: list[Atom] = []
        for node, op in self.found.ops.items():
            if str(node.target) not in ("aten.bmm.default", "aten.matmul.default", "aten.baddbmm.default"):
                continue
            for tensor in op.tensors():
                if tensor not in self.active and len(op.dims_of(tensor)) == 3:
                    result += self._open(op.dims_of(tensor)[0])
        return result

    def _embedding(self) -> list[Atom]:
        return [
            a
            for op in self.found.ops.values()
            if str(op.node.target).startswith(_EMBEDDING)
            for a in self._open(op.dims_of(op.args["weight"])[1])
        ]

    def _residual(self) -> set[Atom]:
        """Carried by both operands of `x + f(x)`."""
        result: set[Atom] = set()
        for node, *operands in self.flow.sums():
            sides = [{a for e in self.found.flat(t) for a in self._open(e)} for t in operands]
            carried = sides[0] & sides[1] if all(t in self.active for t in operands) else set()
            if carried and self.flow.residual(node, *operands) is not None:
                result |= carried
        return result

    def _within(self) -> set[Atom]:
        """Inner factors of a product whose outer factor can be pruned too."""
        result: set[Atom] = set()
        for name in self.found.params:
            for expr in self.found.resolved(name):
                for term in terms_of(expr):
                    if isinstance(term, Product):
                        result |= self._inner(factors_of(term))
        return result

    def _inner(self, factors: list[Expr]) -> set[Atom]:
        opened = [bool(list(self._open(f))) for f in factors]
        return {a for i, f in enumerate(factors) if any(opened[:i]) for a in atoms_of(f)}

    def _ops(self, target: str) -> list[Op]:
        return [op for node, op in self.found.ops.items() if str(node.target) == target]

    def _open(self, expr: Expr) -> Iterator[Atom]:
        axes = self.found.axes
        return (a for a in atoms_of(axes.resolve(expr)) if not axes.frozen(a))
