"""The knapsack against brute force, and how its seeds are spread."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Choice
from paretoprune.search.allocate import Allocation, allocate, spread
from paretoprune.search.table import make_searcher
from paretoprune.testing.searcher import drive, example_objectives

ORIGINAL = 100.0


def problem(seed: int, axes: int = 12, widths: int = 8) -> tuple[Choice, ...]:
    """A larger one: convex errors of very different scale, staircase costs that add up to most of the original."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(axes)) * 0.9 * ORIGINAL
    made = []
    for i in range(axes):
        kept = np.arange(1, widths + 1)
        error = 10 ** rng.uniform(-2, 1) * (1 - kept / widths) ** rng.uniform(1, 3)
        stairs = np.sort(rng.uniform(0, 1, widths))
        cost = ORIGINAL - share[i] * (1 - stairs / stairs[-1])
        made.append(Choice(f"a{i}", tuple(int(k) * 8 for k in kept), tuple(map(float, error)), tuple(map(float, cost))))
    return tuple(made)


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[Choice, ...]:
    """Up to 4 axes of up to 4 widths, on a coarse grid so that ties are common; nothing need be monotone."""
    made = []
    for i in range(draw(st.integers(1, 4))):
        n = draw(st.integers(1, 4))
        grid = st.integers(0, 8).map(lambda v: v / 4)
        error = draw(st.lists(grid, min_size=n, max_size=n))
        saved = [*draw(st.lists(st.integers(-4, 24), min_size=n - 1, max_size=n - 1)), 0]
        made.append(Choice(f"a{i}", tuple(range(1, n + 1)), tuple(error), tuple(ORIGINAL - s for s in saved)))
    return tuple(made)


def everything(choices: Sequence[Choice]) -> Iterator[tuple[float, float]]:
    """(cost, error) of every allocation, one by one."""
    for picks in itertools.product(*(range(len(c.widths)) for c in choices)):
        cost = ORIGINAL + sum(c.cost[i] - ORIGINAL for c, i in zip(choices, picks, strict=True))
        yield cost, sum(c.error[i] for c, i in zip(choices, picks, strict=True))


@given(small_problems())
def test_the_front_is_the_one_of_brute_force(choices: tuple[Choice, ...]) -> None:
    points = sorted(everything(choices))
    expected, lowest = [], float("inf")
    for cost, error in points:
        if error < lowest:
            expected.append((cost, error))
            lowest = error
    found = np.array([(a.cost, a.error) for a in allocate(choices)])
    assert found.shape == (len(expected), 2)
    assert found == pytest.approx(np.array(expected))


@given(small_problems(), st.integers(2, 6))
def test_what_is_predicted_is_what_the_widths_cost_even_when_thinned(choices: tuple[Choice, ...], cap: int) -> None:
    for allocation in allocate(choices, cap):
        error, cost = example_objectives(choices, allocation.widths)
        assert (allocation.cost, allocation.error) == pytest.approx((cost, error))


@pytest.mark.parametrize("cap", [64, 200])
def test_a_thinned_front_stays_within_its_bound(cap: int) -> None:
    choices = problem(3, axes=9, widths=8)
    exact, thinned = allocate(choices, 10**6), allocate(choices, cap)
    assert len(thinned) <= cap + 1 < len(exact)
    slack = len(choices) / (cap - 1) * (exact[-1].cost - exact[0].cost)
    cost, error = np.array([(a.cost, a.error) for a in thinned]).T
    for point in exact:
        assert error[cost <= point.cost + slack + 1e-9].min() <= point.error + 1e-9
    assert thinned[0].cost == pytest.approx(exact[0].cost)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_nothing_that_another_searcher_finds_beats_the_knapsack(name: str, seed: int) -> None:
    """On a separable problem the knapsack is exact: 300 evaluations of another searcher find nothing better."""
    choices = problem(seed)
    front = allocate(choices)
    cost, error = np.array([(a.cost, a.error) for a in front]).T
    steps = len(choices) / 4095 * (cost[-1] - cost[0])  # what thinning may cost
    budget = 300 if name != "tpe" else 60
    found = np.array([told for _, told in drive(make_searcher(name, choices, budget=budget, seed=seed), choices)])
    assert len(found) == budget
    for found_error, found_cost in found:
        assert error[cost <= found_cost + steps].min() <= found_error + 1e-9


def test_spread_is_even_in_log_cost_and_keeps_both_ends() -> None:
    front = [Allocation(float(c), 1000.0 - c, {"a": c}) for c in range(10, 1001)]
    chosen = spread(front, 9)
    assert len(chosen) == 9
    assert (chosen[0], chosen[-1]) == (front[0], front[-1])
    ratios = np.diff(np.log([a.cost for a in chosen]))
    assert ratios.max() / ratios.min() < 1.2


def test_spread_fills_gaps_where_the_front_is_clumped() -> None:
    front = [Allocation(c, 200 - c, {"a": i}) for i, c in enumerate([1.0, 99.0, 99.2, 99.4, 99.6, 99.8, 100.0])]
    chosen = spread(front, 5)
    assert len(chosen) == 5
    assert chosen == sorted(chosen, key=lambda a: a.cost)


def test_spread_of_savings_that_exceed_the_original_has_no_logarithm_of_nothing() -> None:
    front = [Allocation(c, 100 - c, {}) for c in (-40.0, -10.0, 5.0, 30.0, 60.0, 100.0)]
    chosen = spread(front, 4)
    assert len(chosen) == 4
    assert (chosen[0], chosen[-1]) == (front[0], front[-1])


def test_a_large_problem_is_solved_within_its_cap() -> None:
    front = allocate(problem(0, axes=40, widths=16))
    assert 1000 < len(front) <= 4097
    costs = [a.cost for a in front]
    errors = [a.error for a in front]
    assert costs == sorted(costs)
    assert errors == sorted(errors, reverse=True)
    assert front[-1].error == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ((Choice("a", (1, 2), (1.0, 0.0), (5.0, 10.0)), Choice("b", (1, 2), (1.0, 0.0), (5.0, 11.0))), "original"),
        ((Choice("a", (1, 2), (1.0, 0.0), (5.0, 0.0)),), "above 0"),
        ((Choice("a", (1, 2), (1.0, float("nan")), (5.0, 10.0)),), "error of width 2 is nan"),
        ((Choice("a", (2, 1), (1.0, 0.0), (5.0, 10.0)),), "ascend"),
        ((Choice("a", (1, 2), (1.0,), (5.0, 10.0)),), "2 widths, 1 errors and 2 costs"),
        ((Choice("a", (), (), ()),), "no widths"),
        ((Choice("a", (1,), (1.0,), (5.0,)), Choice("a", (1,), (1.0,), (5.0,))), "more than one Choice"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices: tuple[Choice, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        allocate(choices)
