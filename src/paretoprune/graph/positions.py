"""From resolved expressions to sizes and lists of indices."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from paretoprune.graph.algebra import Atom, Expr, Product, Sum, atoms_of

Indices = NDArray[np.int64]


def size_of(expr: Expr, widths: Mapping[Atom, int]) -> int:
    """The size of a resolved expression when some atoms keep fewer positions."""
    if isinstance(expr, Atom):
        return widths.get(expr, expr.size)
    if isinstance(expr, Product):
        return prod(size_of(f, widths) for f in expr.factors)
    return sum(size_of(t, widths) for t in expr.terms)


def kept_indices(expr: Expr, kept: Mapping[Atom, Indices]) -> Indices:
    """Which of the `expr.size` indices stay, ascending, when `kept` names the positions that stay of some atoms."""
    if isinstance(expr, Atom):
        return kept[expr] if expr in kept else np.arange(expr.size)
    if isinstance(expr, Product):
        indices = np.zeros(1, dtype=np.int64)
        for factor in expr.factors:
            indices = (indices[:, None] * factor.size + kept_indices(factor, kept)[None, :]).reshape(-1)
        return indices
    starts = np.cumsum([0, *(t.size for t in expr.terms)])
    return np.concatenate(
        [start + kept_indices(t, kept) for start, t in zip(starts[:-1].tolist(), expr.terms, strict=True)]
    )


def repeated_atoms(expr: Expr) -> set[Atom]:
    """Atoms that stand twice along one product: an axis multiplied by itself has no list of entries."""
    found: set[Atom] = set()
    stack: list[tuple[Expr, frozenset[Atom]]] = [(expr, frozenset())]
    while stack:
        top, outer = stack.pop()
        if isinstance(top, Atom):
            found |= {top} & outer
        elif isinstance(top, Sum):
            stack.extend((term, outer) for term in top.terms)
        else:
            for factor in top.factors:
                stack.append((factor, outer))
                outer = outer.union(atoms_of(factor))
    return found


def entries_of(expr: Expr, atom: Atom) -> Indices:
    """(atom.size, repeats): the indices of `expr` that belong to each position of `atom`."""
    owner = _positions(expr, atom)
    order = np.argsort(owner, kind="stable")
    return order[owner[order] >= 0].reshape(atom.size, -1)


def _positions(expr: Expr, atom: Atom) -> Indices:
    """For every index of `expr` the position of `atom` that it belongs to, or -1."""
    if isinstance(expr, Atom):
        return np.arange(expr.size) if expr is atom else np.full(expr.size, -1)
    if isinstance(expr, Product):
        result = np.full(1, -1)
        for factor in expr.factors:
            inner = _positions(factor, atom)
            result = np.maximum(result[:, None], inner[None, :]).reshape(-1)
        return result
    return np.concatenate([_positions(t, atom) for t in expr.terms])
