"""Multiply-accumulates and parameters of a captured network at given widths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod

from torch import fx, nn

from paretoprune.graph.algebra import Atom, Expr, Product
from paretoprune.graph.inference import Inferred
from paretoprune.graph.op import MacTerm
from paretoprune.graph.positions import size_of

MacTerms = Sequence[tuple[fx.Node, MacTerm]]
Widths = Mapping[Atom, int]


def mac_terms(found: Inferred) -> MacTerms:
    """What every operator multiplies and accumulates, its dims resolved."""
    return [
        (node, (factor, tuple(found.axes.resolve(e) for e in exprs)))
        for node, op in found.ops.items()
        if (count := found.rules[node].macs) is not None
        for factor, exprs in count(op)
    ]


def macs_of(terms: MacTerms, samples: Mapping[int, int], widths: Widths, gone: Collection[fx.Node] = ()) -> int:
    """Multiply-accumulates of one sample, without the operators in `gone`."""
    return sum(
        factor * prod(_per_sample(e, widths, samples) for e in exprs)
        for node, (factor, exprs) in terms
        if node not in gone
    )


def parameters_of(module: nn.Module, found: Inferred, widths: Widths, gone: Collection[str] = ()) -> int:
    """Parameters without those named in `gone`; tied ones count once."""
    return sum(
        prod(size_of(e, widths) for e in found.resolved(name)) if name in found.params else p.numel()
        for name, p in module.named_parameters()
        if name not in gone
    )


def _per_sample(expr: Expr, widths: Widths, samples: Mapping[int, int]) -> int:
    """The size of an expression at these widths, for one sample."""
    if isinstance(expr, Atom):
        return widths.get(expr, samples.get(expr.size, expr.size))
    if isinstance(expr, Product):
        return prod(_per_sample(f, widths, samples) for f in expr.factors)
    return sum(_per_sample(t, widths, samples) for t in expr.terms)


def elements_of(found: Inferred, samples: Mapping[int, int], widths: Widths, gone: Collection[fx.Node] = ()) -> int:
    """Numbers that the operators write for one sample, views included, but those that are `gone`."""
    total = 0
    for op in found.ops.values():
        if op.node in gone:
            continue
        for dims in op.out if op.out and isinstance(op.out[0], list) else [op.out]:
            total += prod(_per_sample(found.axes.resolve(e), widths, samples) for e in dims)
    return total
