"""The pure algebra: whatever is unified, the index lists on both sides are the same, for every choice of positions."""

from __future__ import annotations

import itertools
import time
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretoprune.graph.algebra import (
    MAX_SEGMENTS,
    UNIT,
    Atom,
    Axes,
    Expr,
    Product,
    Sum,
    atoms_of,
    concatenate,
    factors_of,
    multiply,
)
from paretoprune.graph.positions import entries_of, kept_indices, repeated_atoms, size_of


def leaf(draw: st.DrawFn, atoms: list[Atom]) -> Expr:
    """A new atom, an old one again, or the unit."""
    choice = draw(st.integers(0, 5))
    if choice == 0:
        return UNIT
    if choice == 1 and atoms:
        return draw(st.sampled_from(atoms))
    atoms.append(Atom(draw(st.integers(2, 6)), f"t{len(atoms)}"))
    return atoms[-1]


@st.composite
def expressions(draw: st.DrawFn, atoms: list[Atom], depth: int = 2) -> Expr:
    if depth == 0 or draw(st.booleans()):
        return leaf(draw, atoms)
    parts = [draw(expressions(atoms, depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    return multiply(*parts) if draw(st.booleans()) else concatenate(*parts)


@st.composite
def one_expression(draw: st.DrawFn) -> Expr:
    return draw(expressions([]))


def divisions(total: int, draw: st.DrawFn) -> list[int]:
    """`total` as a list of factors."""
    sizes: list[int] = []
    while total > 1:
        factor = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        sizes.append(factor)
        total //= factor
    return sizes


def fresh(size: int) -> Expr:
    return UNIT if size == 1 else Atom(size)


def refined(expr: Expr, draw: st.DrawFn) -> Expr:
    """Another expression of the same size over new atoms: what an operator elsewhere would call the same dim."""
    kind = draw(st.integers(0, 2))
    if kind == 0 or expr.size < 2:
        return fresh(expr.size)
    if kind == 1:
        return multiply(*(fresh(s) for s in divisions(expr.size, draw)))
    cuts = sorted(draw(st.sets(st.integers(1, expr.size - 1), max_size=3)))
    return concatenate(*(fresh(b - a) for a, b in zip([0, *cuts], [*cuts, expr.size], strict=True)))


def some_kept(axes: Axes, exprs: list[Expr], seed: int) -> dict[Atom, np.ndarray]:
    """Random kept positions for every atom that may be pruned."""
    rng = np.random.default_rng(seed)
    open_ = dict.fromkeys(a for e in exprs for a in atoms_of(axes.resolve(e)) if not axes.frozen(a))
    return {a: np.sort(rng.choice(a.size, int(rng.integers(1, a.size + 1)), replace=False)) for a in open_}


def assert_normal(expr: Expr) -> None:
    """A product is atoms with at most one sum, at its end; a sum holds no sum and more than one term."""
    if isinstance(expr, Sum):
        assert len(expr.terms) != 1
        assert not any(isinstance(t, Sum) for t in expr.terms)
        for term in expr.terms:
            assert_normal(term)
        assert expr.size == sum(t.size for t in expr.terms)
    elif isinstance(expr, Product):
        assert len(expr.factors) != 1
        assert all(isinstance(f, Atom) for f in expr.factors[:-1])
        assert not any(isinstance(f, Product) for f in expr.factors)
        assert expr.size == prod(f.size for f in expr.factors)
        if expr.factors and isinstance(expr.factors[-1], Sum):
            assert_normal(expr.factors[-1])


@given(one_expression())
def test_normal_form(expr: Expr) -> None:
    assert_normal(expr)
    assert_normal(multiply(expr, expr))
    assert_normal(concatenate(expr, multiply(Atom(3), expr)))


@given(one_expression(), st.integers(0, 99))
def test_kept_indices_have_the_size_of_the_kept_widths(expr: Expr, seed: int) -> None:
    kept = some_kept(Axes(), [expr], seed)
    indices = kept_indices(expr, kept)
    assert len(indices) == size_of(expr, {a: len(k) for a, k in kept.items()})
    assert np.all(np.diff(indices) > 0)
    assert indices.size == 0 or 0 <= indices[0] <= indices[-1] < expr.size


@given(one_expression(), st.integers(0, 99))
def test_entries_are_what_vanishes_with_a_position(expr: Expr, seed: int) -> None:
    for atom in set(atoms_of(expr)) - repeated_atoms(expr):
        entries = entries_of(expr, atom)
        assert sorted(set(entries.reshape(-1))) == sorted(entries.reshape(-1))
        gone = int(np.random.default_rng(seed).integers(atom.size))
        kept = kept_indices(expr, {atom: np.delete(np.arange(atom.size), gone)})
        assert set(range(expr.size)) - set(kept.tolist()) == set(entries[gone].tolist())


def test_an_axis_times_itself_is_found() -> None:
    a, b = Atom(2, "a"), Atom(3, "b")
    assert repeated_atoms(multiply(a, b, a)) == {a}
    assert repeated_atoms(multiply(a, concatenate(b, a))) == {a}
    assert repeated_atoms(multiply(b, concatenate(a, multiply(a, Atom(5))))) == set()


@settings(max_examples=300)
@given(st.data(), st.integers(0, 99))
def test_unified_sides_keep_the_same_indices(data: st.DataObject, seed: int) -> None:
    """The ground truth is one dim; every other name for it must list the same indices after unification."""
    truth = data.draw(expressions([]))
    names = [truth, *(refined(truth, data.draw) for _ in range(data.draw(st.integers(1, 3))))]
    axes = Axes()
    for other in data.draw(st.permutations(names[1:])):
        axes.unify(truth, other, "test")
    axes.settle()
    solved = [axes.resolve(n) for n in names]
    assert [e.size for e in solved] == [truth.size] * len(names)
    for expr in solved:
        assert_normal(expr)
    kept = some_kept(axes, names, seed)
    lists = [kept_indices(e, kept).tolist() for e in solved]
    assert all(one == lists[0] for one in lists)


@settings(max_examples=200)
@given(st.data(), st.integers(0, 99))
def test_a_network_of_relations_stays_consistent(data: st.DataObject, seed: int) -> None:
    """Dims are unified, regrouped, cut and joined at random: every relation holds for every choice of positions."""
    axes, dims, equal = Axes(), [Atom(data.draw(st.integers(2, 12)), f"d{i}") for i in range(3)], []
    pool: list[Expr] = list(dims)
    for _ in range(data.draw(st.integers(1, 8))):
        kind, one = (
            data.draw(st.sampled_from(["unify", "regroup", "cut", "join", "freeze"])),
            data.draw(st.sampled_from(pool)),
        )
        if kind == "unify":
            same = [e for e in pool if e.size == one.size]
            equal.append((one, data.draw(st.sampled_from(same))))
            axes.unify(*equal[-1], "test")
        elif kind == "regroup" and one.size > 1:
            parts = [fresh(s) for s in divisions(one.size, data.draw)]
            equal.append((one, multiply(*parts)))
            axes.unify(*equal[-1], "test")
            pool.extend(parts)
        elif kind == "cut" and one.size > 1:
            pieces = axes.cut(one, data.draw(st.integers(1, one.size - 1)))
            if pieces is None:
                axes.freeze(one, "cut across")
            else:
                equal.append((one, concatenate(*pieces)))
                pool.extend(pieces)
        elif kind == "join" and one.size < 40:
            pool.append(concatenate(one, data.draw(st.sampled_from(pool))))
        elif kind == "freeze":
            axes.freeze(one, "frozen by hand")
    axes.settle()
    kept = some_kept(axes, [e for pair in equal for e in pair], seed)
    for a, b in equal:
        left, right = (kept_indices(axes.resolve(e), kept).tolist() for e in (a, b))
        assert left == right


@given(st.data())
def test_freezing_passes_through_bindings(data: st.DataObject) -> None:
    axes, atom = Axes(), Atom(24, "a")
    before = data.draw(st.booleans())
    if before:
        axes.freeze(atom, "first")
    axes.unify(atom, refined(atom, data.draw), "test")
    axes.cut(atom, data.draw(st.integers(1, 23)))
    if not before:
        axes.freeze(atom, "first")
    axes.freeze(atom, "second")
    axes.settle()
    assert {axes.frozen(a) for a in atoms_of(axes.resolve(atom))} <= {"first"}


def test_what_cannot_be_matched_freezes_both_sides() -> None:
    axes, a, b, c, d = Axes(), Atom(4, "a"), Atom(6, "b"), Atom(6, "c"), Atom(4, "d")
    axes.unify(multiply(a, b), multiply(c, d), "a reshape cuts across it")
    axes.settle()
    assert {axes.frozen(x) for e in (a, b, c, d) for x in atoms_of(axes.resolve(e))} == {"a reshape cuts across it"}


def test_a_late_relation_resolves_an_early_failure() -> None:
    axes, a, b = Axes(), Atom(6, "a"), Atom(4, "b")
    c, d, e = Atom(4, "c"), Atom(3, "d"), Atom(2, "e")
    axes.unify(multiply(a, b), multiply(c, Atom(6)), "test")
    axes.unify(a, multiply(e, d), "test")
    axes.unify(c, multiply(Atom(2), Atom(2)), "test")
    axes.settle()
    assert axes.resolve(multiply(a, b)).size == 24


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="size 3 against 4"):
        Axes().unify(Atom(3), Atom(4), "test")


def test_an_atom_that_stands_twice_is_split_once() -> None:
    axes, a, b, c, d, e = Axes(), Atom(6, "a"), Atom(2, "b"), Atom(3, "c"), Atom(2, "d"), Atom(3, "e")
    axes.unify(multiply(a, a), multiply(b, c, d, e), "test")
    axes.settle()
    assert axes.resolve(b) is axes.resolve(d)
    assert axes.resolve(c) is axes.resolve(e)
    left, right = axes.resolve(multiply(a, a)), axes.resolve(multiply(b, c, d, e))
    kept = some_kept(axes, [left, right], 1)
    assert kept_indices(left, kept).tolist() == kept_indices(right, kept).tolist()


@given(st.data())
def test_nothing_freezes_where_boundaries_can_be_refined(data: st.DataObject) -> None:
    """Two ways to write a run of factors, both coarser than one finest way, always match."""
    finest = data.draw(st.lists(st.integers(2, 4), min_size=2, max_size=6))

    def coarser() -> Expr:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(finest) - 1))))
        runs = [finest[i:j] for i, j in zip([0, *cuts], [*cuts, len(finest)], strict=True)]
        return multiply(*(Atom(prod(run)) for run in runs))

    axes, left, right, whole = Axes(), coarser(), coarser(), multiply(*(Atom(s) for s in finest))
    axes.unify(left, whole, "test")
    axes.unify(right, whole, "test")
    axes.unify(left, right, "test")
    axes.settle()
    assert not any(axes.frozen(a) for a in atoms_of(axes.resolve(left)))
    assert axes.resolve(left) == axes.resolve(right)


def test_more_than_64_segments_freeze() -> None:
    axes, many = Axes(), [Atom(2, f"s{i}") for i in range(MAX_SEGMENTS + 1)]
    whole = Atom(2 * len(many), "whole")
    axes.unify(whole, concatenate(*many), "test")
    assert "more than 64" in axes.frozen(many[0])
    few = concatenate(*(Atom(2) for _ in range(MAX_SEGMENTS)))
    axes.limit_segments(few)
    assert not any(axes.frozen(a) for a in atoms_of(few))
    rest: Expr = Atom(200, "long")
    first = rest
    for _ in range(MAX_SEGMENTS + 1):  # one cut after the other, never 64 segments at once
        pieces = axes.cut(rest, 2)
        assert pieces is not None
        rest = pieces[1]
    axes.limit_segments(first)
    assert all("more than 64" in axes.frozen(a) for a in atoms_of(axes.resolve(first)))


def test_an_axis_against_itself_shifted_ends() -> None:
    axes, a = Axes(), Atom(100_000, "a")
    head, tail = axes.cut(a, 99_999), axes.cut(a, 1)
    assert head is not None
    assert tail is not None
    axes.unify(head[0], tail[1], "a shift")
    axes.settle()
    assert all(axes.frozen(x) for x in atoms_of(axes.resolve(a)) if x.size > 1)


def test_frozen_sides_are_not_taken_apart() -> None:
    axes, a, b = Axes(), Atom(12, "a"), Atom(12, "b")
    axes.freeze(a, "spatial")
    axes.freeze(b, "spatial")
    axes.unify(multiply(a, Atom(2)), multiply(b, Atom(2)), "test")
    assert factors_of(axes.resolve(a)) == [a]


def test_deep_chains_do_not_recurse() -> None:
    axes = Axes()
    chain = [Atom(8, f"c{i}") for i in range(20_000)]
    for a, b in itertools.pairwise(chain):
        axes.unify(a, b, "test")
    assert axes.resolve(chain[0]) is axes.resolve(chain[-1])
    first: Expr = Atom(20_000, "sum")
    rest = first
    for _ in range(5_000):
        pieces = axes.cut(rest, 1)
        assert pieces is not None
        rest = pieces[1]
    assert axes.resolve(first).size == 20_000
    nested: Expr = Atom(2**60, "product")
    top = nested
    for i in range(59):
        parts: tuple[Expr, Expr] = (Atom(2), Atom(2 ** (59 - i)))
        axes.unify(nested, multiply(*parts), "test")
        nested = parts[1]
    assert len(factors_of(axes.resolve(top))) == 60


def test_ten_thousand_nodes_are_quick() -> None:
    """Linear: twice the nodes take about twice the time, and all of it far below the two seconds that are allowed."""

    def chain(nodes: int) -> float:
        started = time.process_time()
        axes = Axes()
        dim: Expr = Atom(64)
        for i in range(nodes):
            other: Expr = Atom(64)
            axes.unify(dim, other, "layer")
            if i % 10 == 0:
                axes.unify(other, multiply(Atom(8), Atom(8)), "heads")
            if i % 7 == 0:
                axes.freeze(Atom(9), "kernel")
            dim = other
        axes.settle()
        return time.process_time() - started

    assert chain(10_000) < 2 + 100 * chain(100)
