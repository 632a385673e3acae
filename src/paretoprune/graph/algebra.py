"""The axis algebra: expressions over atoms, unified as a type checker unifies types.

A *dim* of a tensor is an atom, a product (row-major, outer factor first) or a sum (concatenation). Normal form: a
product is a run of atoms with at most one sum, at its end, since a product distributes over a sum in its outer
factor; a sum holds no sum; the unit (size 1) is the empty product. Nothing here knows about tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

MAX_SEGMENTS = 64
"""A sum of more segments than this is frozen: nobody prunes 65 concatenated pieces one by one."""

MAX_STEPS = 4096
"""A unification with more steps than this is given up, and what it relates is frozen."""


@dataclass(frozen=True, eq=False)
class Atom:
    """A run of positions that no operator has taken apart yet. Compared by identity."""

    size: int
    name: str = ""

    def __repr__(self) -> str:
        return self.name or f"a{self.size}"


@dataclass(frozen=True)
class Product:
    factors: tuple[Expr, ...]
    size: int = field(compare=False)

    def __repr__(self) -> str:
        return "·".join(map(repr, self.factors)) or "1"


@dataclass(frozen=True)
class Sum:
    terms: tuple[Expr, ...]
    size: int = field(compare=False)

    def __repr__(self) -> str:
        return "[" + " + ".join(map(repr, self.terms)) + "]"


Expr = Atom | Product | Sum
UNIT = Product((), 1)


def multiply(*factors: Expr) -> Expr:
    """The row-major product in normal form, outer factor first."""
    result: Expr = UNIT
    for factor in reversed(factors):
        result = _times(factor, result)
    return result


def _times(outer: Expr, inner: Expr) -> Expr:
    if inner == UNIT:
        return outer
    if isinstance(outer, Sum):
        return concatenate(*(_times(term, inner) for term in outer.terms))
    if isinstance(outer, Product):
        for factor in reversed(outer.factors):
            inner = _times_last(factor, inner)
        return inner
    return _times_last(outer, inner)


def _times_last(outer: Expr, inner: Expr) -> Expr:
    if isinstance(outer, Sum):
        return _times(outer, inner)
    tail = inner.factors if isinstance(inner, Product) else (inner,)
    return Product((outer, *tail), outer.size * inner.size)


def concatenate(*terms: Expr) -> Expr:
    """The sum in normal form, left segment first."""
    flat = [t for term in terms for t in (term.terms if isinstance(term, Sum) else (term,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat), sum(t.size for t in flat))


def factors_of(expr: Expr) -> list[Expr]:
    return list(expr.factors) if isinstance(expr, Product) else [expr]


def terms_of(expr: Expr) -> list[Expr]:
    return list(expr.terms) if isinstance(expr, Sum) else [expr]


def atoms_of(expr: Expr) -> Iterator[Atom]:
    """Every atom, left to right, as often as it stands there."""
    stack = [expr]
    while stack:
        top = stack.pop()
        if isinstance(top, Atom):
            yield top
        else:
            stack.extend(reversed(top.factors if isinstance(top, Product) else top.terms))


class Axes:
    """Bindings of atoms to expressions, and which atoms are frozen and why."""

    def __init__(self) -> None:
        self._bound: dict[Atom, Expr] = {}
        self._frozen: dict[Atom, str] = {}
        self._deferred: list[tuple[Expr, Expr, str]] = []
        self._resolved: dict[int, tuple[Expr, Expr]] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    def resolve(self, expr: Expr) -> Expr:
        """`expr` over unbound atoms, in normal form. Bindings are compressed on the way; nothing recurses."""
        if isinstance(expr, Atom) and expr not in self._bound:
            return expr
        if id(expr) not in self._resolved:
            self._resolved[id(expr)] = expr, self._solve(expr)
        return self._resolved[id(expr)][1]

    def _solve(self, expr: Expr) -> Expr:
        solved: dict[int, Expr] = {}
        stack = [expr]
        while stack:
            top = stack[-1]
            parts = self._parts(top)
            waiting = [p for p in parts if id(p) not in solved]
            if waiting and id(top) not in solved:
                stack.extend(waiting)
                continue
            stack.pop()
            if id(top) not in solved:
                solved[id(top)] = self._joined(top, [solved[id(p)] for p in parts])
        return solved[id(expr)]

    def _parts(self, expr: Expr) -> tuple[Expr, ...]:
        if isinstance(expr, Atom):
            return (self._bound[expr],) if expr in self._bound else ()
        return expr.factors if isinstance(expr, Product) else expr.terms

    def _joined(self, expr: Expr, parts: list[Expr]) -> Expr:
        if isinstance(expr, Atom):
            if not parts:
                return expr
            self._bound[expr] = parts[0]
            return parts[0]
        if all(a is b for a, b in zip(self._parts(expr), parts, strict=True)):
            return expr
        return multiply(*parts) if isinstance(expr, Product) else concatenate(*parts)

    def frozen(self, atom: Atom) -> str:
        """The reason why an (unbound) atom may not be pruned; empty if it may."""
        return self._frozen.get(atom, "")

    # -- relating ------------------------------------------------------------------------------------------------

    def freeze(self, expr: Expr, reason: str) -> None:
        """No position of any atom of `expr` may be removed. The first reason stays."""
        for atom in atoms_of(self.resolve(expr)):
            self._frozen.setdefault(atom, reason)

    def unify(self, a: Expr, b: Expr, reason: str) -> None:
        """Position i of `a` is position i of `b`. What cannot be matched is retried by `settle`, then frozen.

        Two frozen sides need no match. A match that takes too many steps (an axis against itself, shifted) freezes.
        """
        if a.size != b.size:
            raise ValueError(f"{reason}: size {a.size} against {b.size}")
        stack = [(a, b)]
        for _ in range(MAX_STEPS):
            if not stack:
                return
            left, right = (self.resolve(side) for side in stack.pop())
            if left is right or left == right or (self._closed(left) and self._closed(right)):
                continue
            if isinstance(left, Atom):
                self._bind(left, right)
            elif isinstance(right, Atom):
                self._bind(right, left)
            elif isinstance(left, Product) and isinstance(right, Product):
                self._match_products(left, right, stack, reason)
            else:
                self._match_sums(left, right, stack, reason)
        for side in (a, b):
            self.freeze(side, f"{reason} (more than {MAX_STEPS} pieces)")

    def _closed(self, expr: Expr) -> bool:
        return all(atom in self._frozen for atom in atoms_of(expr))

    def settle(self) -> None:
        """Try failed matches again until nothing moves, then freeze what is left."""
        while self._deferred:
            waiting, self._deferred = self._deferred, []
            before = len(self._bound)
            for a, b, reason in waiting:
                self.unify(a, b, reason)
            if len(self._bound) == before:
                for a, b, reason in self._deferred:
                    self.freeze(a, reason)
                    self.freeze(b, reason)
                self._deferred = []

    def limit_segments(self, expr: Expr) -> None:
        """Freeze a sum of more than MAX_SEGMENTS segments."""
        expr = self.resolve(expr)
        if len(terms_of(expr)) > MAX_SEGMENTS:
            self.freeze(expr, f"it is put together from {len(terms_of(expr))} pieces (more than {MAX_SEGMENTS})")

    def _bind(self, atom: Atom, expr: Expr) -> None:
        if isinstance(expr, Atom) and atom.name and not expr.name:
            atom, expr = expr, atom
        self._bound[atom] = expr
        self._resolved.clear()
        if atom in self._frozen:
            self.freeze(expr, self._frozen[atom])
        if isinstance(expr, Sum):
            self.limit_segments(expr)

    def _split(self, atom: Atom, sizes: Sequence[int], *, as_sum: bool) -> list[Expr]:
        mark = "+" if as_sum else "*"
        parts: list[Expr] = [
            UNIT if size == 1 else Atom(size, f"{atom.name}{mark}{i}" if atom.name else "")
            for i, size in enumerate(sizes)
        ]
        self._bind(atom, concatenate(*parts) if as_sum else multiply(*parts))
        return parts

    def cut(self, expr: Expr, at: int) -> tuple[Expr, Expr] | None:
        """(first `at` positions, the rest), splitting an atom where the cut falls inside; None where it cannot."""
        expr = self.resolve(expr)
        if isinstance(expr, Atom):
            left, right = self._split(expr, (at, expr.size - at), as_sum=True)
            return left, right
        if isinstance(expr, Sum):
            return self._cut_sum(expr, at)
        outer, inner = expr.factors[0], multiply(*expr.factors[1:])
        if at % inner.size:
            return None
        pieces = self.cut(outer, at // inner.size)
        return None if pieces is None else (multiply(pieces[0], inner), multiply(pieces[1], inner))

    def _cut_sum(self, expr: Sum, at: int) -> tuple[Expr, Expr] | None:
        left: list[Expr] = []
        right = list(expr.terms)
        while at:
            term = right.pop(0)
            if term.size > at:
                pieces = self.cut(term, at)
                if pieces is None:
                    return None
                left.append(pieces[0])
                right.insert(0, pieces[1])
                break
            left.append(term)
            at -= term.size
        return concatenate(*left), concatenate(*right)

    def _match_products(self, a: Product, b: Product, stack: list[tuple[Expr, Expr]], reason: str) -> None:
        left, right = list(a.factors), list(b.factors)
        while left and right:
            x, y = left[0], right[0]
            if x.size == y.size:
                stack.append((left.pop(0), right.pop(0)))
            elif isinstance(x, Sum) or isinstance(y, Sum):
                stack.append((multiply(*left), multiply(*right)))
                return
            elif self._refine(left, right):
                stack.append((multiply(*left), multiply(*right)))  # the atom that was split may stand here again
                return
            else:
                self._deferred.append((multiply(*left), multiply(*right), reason))
                return

    def _refine(self, left: list[Expr], right: list[Expr]) -> bool:
        """Split the larger of the two leading atoms so that it starts with the smaller one's size."""
        large, small = (left, right) if left[0].size > right[0].size else (right, left)
        atom, size = large[0], small[0].size
        if not isinstance(atom, Atom) or atom.size % size:
            return False
        large[:1] = self._split(atom, (size, atom.size // size), as_sum=False)
        return True

    def _match_sums(self, a: Expr, b: Expr, stack: list[tuple[Expr, Expr]], reason: str) -> None:
        """At least one side is a sum: cut both at the first boundary that both can have."""
        at = self._boundary(a, b)
        left, right = self.cut(a, at), self.cut(b, at)
        if left is None or right is None:
            self._deferred.append((a, b, reason))
            return
        stack.append((left[1], right[1]))
        stack.append((left[0], right[0]))

    def _boundary(self, a: Expr, b: Expr) -> int:
        first = min(terms_of(e)[0].size for e in (a, b) if isinstance(e, Sum))
        step = max(_grain(a), _grain(b))
        if first % step == 0:
            return first
        summed = 0
        for term in terms_of(a if isinstance(a, Sum) else b)[:-1]:
            summed += term.size
            if summed % step == 0:
                return summed
        return step


def _grain(expr: Expr) -> int:
    """A product can be cut only at multiples of what stands inside its outer factor."""
    return prod(f.size for f in expr.factors[1:]) if isinstance(expr, Product) and expr.factors else 1
