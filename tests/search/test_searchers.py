"""What is particular to each searcher, and the table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from paretoprune.core.errors import UsageError
from paretoprune.core.hypervolume import hypervolume
from paretoprune.core.protocols import Choice, Proposal, Searcher
from paretoprune.search.allocate import allocate
from paretoprune.search.knapsack import Knapsack
from paretoprune.search.random import RandomSearch
from paretoprune.search.space import Space
from paretoprune.search.table import SEARCHERS, make_searcher
from paretoprune.testing.searcher import drive, example_choices, example_objectives


def test_the_knapsack_proposes_its_own_front_ends_first() -> None:
    choices = example_choices()
    front = [dict(a.widths) for a in allocate(choices)]
    asked = [dict(p.widths) for p, _ in drive(Knapsack(choices, budget=9), choices)]
    assert len(asked) == 9
    assert asked[:2] == [front[-1], front[0]]
    assert all(widths in front for widths in asked)


@pytest.mark.parametrize("budget", [1, 2, 3, 30, 10_000])
def test_the_knapsack_gives_each_allocation_once_for_any_budget(budget: int) -> None:
    choices = example_choices()
    asked = [tuple(p.widths.values()) for p, _ in drive(Knapsack(choices, budget=budget), choices)]
    assert len(asked) == len(set(asked)) == min(budget, len(allocate(choices)))


def test_answers_are_recorded() -> None:
    choices = example_choices()
    for name in SEARCHERS:
        searcher: Any = make_searcher(name, choices, budget=3)
        asked = drive(searcher, choices, lambda p: None if p.number == 1 else (1.0, 2.0))
        assert searcher.told == tuple(asked)


def _hypervolume(done: Sequence[tuple[Proposal, Sequence[float] | None]]) -> float:
    return hypervolume(np.array([told for _, told in done]), np.array([12.0, 101.0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nsga2", "tpe"])
def test_guided_search_beats_chance(name: str) -> None:
    choices = example_choices(axes=8, widths=8)
    better = 0
    for seed in range(3):
        guided = drive(make_searcher(name, choices, budget=100, seed=seed), choices)
        chance = drive(make_searcher("random", choices, budget=100, seed=seed), choices)
        better += _hypervolume(guided) > _hypervolume(chance)
    assert better >= 2


def test_nsga2_breeds_from_its_seeds() -> None:
    """Trials that are given rather than sampled must count as parents: children of narrow seeds are narrow."""
    choices = example_choices(axes=10, widths=8)
    rng = np.random.default_rng(0)
    narrow = [{c.axis: c.widths[int(rng.integers(2))] for c in choices} for _ in range(8)]
    asked = drive(make_searcher("nsga2", choices, seeds=narrow, budget=16), choices)
    children = asked[8:]
    share = np.mean([p.widths[c.axis] in c.widths[:2] for p, _ in children for c in choices])
    assert share > 0.7  # by chance 0.25


@pytest.mark.parametrize("name", ["nsga2", "tpe", "random"])
def test_a_search_that_repeats_itself_still_covers_a_small_space(name: str) -> None:
    choices = example_choices(axes=3, widths=3)
    asked = drive(make_searcher(name, choices, budget=1000), choices)
    assert len(asked) == 27


def test_different_seeds_search_differently() -> None:
    choices = example_choices()
    for name in ("nsga2", "tpe", "random"):
        one = drive(make_searcher(name, choices, budget=5, seed=1), choices)
        assert one != drive(make_searcher(name, choices, budget=5, seed=2), choices)


def test_optuna_is_quiet_and_its_log_level_is_given_back(caplog: pytest.LogCaptureFixture) -> None:
    import optuna

    optuna.logging.enable_propagation()
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.INFO)
        with caplog.at_level(logging.DEBUG):
            drive(make_searcher("tpe", example_choices(), budget=15), example_choices())
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
        optuna.logging.disable_propagation()
    assert [r for r in caplog.records if r.name.startswith("optuna")] == []


def test_a_bad_seed_names_the_axis_and_what_is_offered() -> None:
    choices = example_choices(axes=2)
    with pytest.raises(UsageError, match=r"axis 'a1': width 1000 is not one of"):
        make_searcher("random", choices, seeds=[{"a0": choices[0].widths[0], "a1": 1000}], budget=3)
    with pytest.raises(UsageError, match=r"'b', which is not searched; searched: a0, a1"):
        Space(choices).key({"b": 3})


def test_every_proposal_draws_anew() -> None:
    class Watched(RandomSearch):
        def sampler(self, seed: int, budget: int) -> Any:
            drawn.append(seed)
            return super().sampler(seed, budget)

    drawn: list[int] = []
    choices = example_choices(axes=8, widths=8)
    drive(Watched(choices, budget=20), choices)
    assert len(drawn) == len(set(drawn)) == 20


class _Always:
    """A searcher of someone else's."""

    name = "always"

    def __init__(self, choices: Sequence[Choice], *, seeds: Any, budget: int, seed: int) -> None:
        self.settings = (len(choices), list(seeds), budget, seed)

    def ask(self) -> Proposal | None:
        return None

    def tell(self, proposal: Proposal, objectives: Sequence[float] | None) -> None:
        raise AssertionError

    def replay(self, past: Any) -> None:
        pass


class TestTable:
    def test_a_class_is_called_with_the_settings(self) -> None:
        made: Any = make_searcher(_Always, example_choices(), budget=4, seed=9)
        assert made.settings == (4, [], 4, 9)

    def test_a_ready_object_is_taken_as_it_is(self) -> None:
        ready = _Always((), seeds=(), budget=1, seed=0)
        assert make_searcher(ready, example_choices(), budget=4) is ready

    def test_a_reference_out_of_the_tree(self) -> None:
        made = make_searcher("paretoprune.search.knapsack:Knapsack", example_choices(), budget=4)
        assert isinstance(made, Knapsack)

    def test_an_unknown_name_lists_what_there_is(self) -> None:
        with pytest.raises(UsageError, match=r"'nsga3'.*knapsack, nsga2, random, tpe.*did you mean 'nsga2'"):
            make_searcher("nsga3", example_choices(), budget=4)

    def test_what_is_no_searcher_is_refused(self) -> None:
        wrong: Any = "paretoprune.search.space:Space"
        with pytest.raises(UsageError, match="lacks name, ask, tell, replay"):
            make_searcher(lambda choices, **_: Space(choices), example_choices(), budget=4)  # type: ignore[arg-type,return-value]
        with pytest.raises(UsageError, match="no attribute 'Nope'"):
            make_searcher(wrong.replace("Space", "Nope"), example_choices(), budget=4)

    def test_importing_the_table_imports_neither_optuna_nor_torch(self) -> None:
        import subprocess
        import sys

        code = "import sys, paretoprune.search.table, paretoprune.testing; print({'optuna','torch'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_with_src())
        assert done.stdout.strip() == "set()"


def _with_src() -> dict[str, str]:
    import os

    import paretoprune

    root = os.path.dirname(next(iter(paretoprune.__path__)))
    return {**os.environ, "PYTHONPATH": root}


def test_replay_takes_points_of_another_searcher_and_counts_repeats_once() -> None:
    choices = example_choices()
    past = [(p.widths, told) for p, told in drive(make_searcher("random", choices, budget=6), choices)]
    for name in SEARCHERS:
        searcher: Searcher = make_searcher(name, choices, budget=10)
        searcher.replay([*past, past[0]])
        rest = drive(searcher, choices)
        assert [p.number for p, _ in rest] == [6, 7, 8, 9]
        assert not {tuple(w.items()) for w, _ in past} & {tuple(p.widths.items()) for p, _ in rest}


def test_the_objectives_of_the_example_problem_are_those_of_the_knapsack() -> None:
    choices = example_choices()
    for allocation in allocate(choices):
        error, cost = example_objectives(choices, allocation.widths)
        assert (allocation.error, allocation.cost) == pytest.approx((error, cost))
