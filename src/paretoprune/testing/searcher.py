"""What every searcher must keep to."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Choice, Proposal, Searcher


def example_choices(axes: int = 4, widths: int = 5) -> tuple[Choice, ...]:
    """Axes "a0", "a1" … with errors and savings that differ from axis to axis and widths that are not equally wide."""
    made = []
    for i in range(axes):
        kept = tuple(4 + 3 * j + (j * j + i) % 3 for j in range(widths))
        share = [k / kept[-1] for k in kept]
        error = tuple((1 + 0.7 * i) * (1 - s) ** (2 + i % 2) for s in share)
        cost = tuple(100.0 - (12 + 5 * i) / axes * 4 * (1 - s) for s in share)
        made.append(Choice(f"a{i}", kept, error, cost))
    return tuple(made)


def example_objectives(choices: Sequence[Choice], widths: Mapping[str, int]) -> tuple[float, float]:
    """(error, cost) of the separable problem that the choices describe."""
    at = {c.axis: c.widths.index(widths[c.axis]) for c in choices}
    original = choices[0].cost[-1]
    error = sum(c.error[at[c.axis]] for c in choices)
    return error, original + sum(c.cost[at[c.axis]] - original for c in choices)


class SearcherCase(ABC):
    """Inherit it in a test class and give `make`. Needs nothing but pytest's collection."""

    @abstractmethod
    def make(
        self,
        choices: Sequence[Choice],
        *,
        seeds: Sequence[Mapping[str, int]] = (),
        budget: int = 20,
        seed: int = 0,
    ) -> Searcher:
        """The searcher under test."""

    def test_it_has_a_name(self) -> None:
        assert isinstance(self.make(example_choices()).name, str)
        assert self.make(example_choices()).name

    def test_proposals_are_numbered_from_zero_and_name_every_axis(self) -> None:
        choices = example_choices()
        offered = {c.axis: c.widths for c in choices}
        asked = drive(self.make(choices), choices)
        assert asked
        assert [p.number for p, _ in asked] == list(range(len(asked)))
        for proposal, _ in asked:
            assert set(proposal.widths) == set(offered)
            assert all(type(w) is int and w in offered[axis] for axis, w in proposal.widths.items())

    def test_no_point_is_proposed_twice(self) -> None:
        choices = example_choices(axes=2, widths=3)
        points = [tuple(sorted(p.widths.items())) for p, _ in drive(self.make(choices, budget=50), choices)]
        assert len(points) == len(set(points))

    def test_it_ends_within_the_budget_and_stays_ended(self) -> None:
        choices = example_choices()
        searcher = self.make(choices, budget=7)
        assert len(drive(searcher, choices)) <= 7
        assert searcher.ask() is None
        assert searcher.ask() is None

    def test_it_ends_when_the_space_is_used_up(self) -> None:
        choices = example_choices(axes=2, widths=2)
        assert len(drive(self.make(choices, budget=100), choices)) <= 4

    def test_the_same_seed_gives_the_same_search(self) -> None:
        choices = example_choices()
        assert drive(self.make(choices, seed=3), choices) == drive(self.make(choices, seed=3), choices)

    def test_seeds_are_proposed_first(self) -> None:
        choices = example_choices()
        seeds = [{c.axis: c.widths[i] for c in choices} for i in (3, 1)]
        asked = drive(self.make(choices, seeds=[*seeds, seeds[0]]), choices)
        assert [dict(p.widths) for p, _ in asked[:2]] == seeds
        assert dict(asked[2][0].widths) not in seeds

    def test_failures_do_not_stop_it(self) -> None:
        choices = example_choices()
        alive = drive(self.make(choices, budget=12), choices)
        failing = drive(self.make(choices, budget=12), choices, lambda _: None)
        assert len(failing) == len(alive)

    def test_several_may_be_open_at_once_and_told_out_of_order(self) -> None:
        choices = example_choices()
        searcher = self.make(choices, budget=12)
        points = []
        while batch := [p for p in (searcher.ask() for _ in range(4)) if p is not None]:
            points += [tuple(sorted(p.widths.items())) for p in batch]
            for proposal in reversed(batch):
                searcher.tell(proposal, example_objectives(choices, proposal.widths))
        assert points
        assert len(points) == len(set(points))

    def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(self) -> None:
        choices = example_choices()
        seeds = [{c.axis: c.widths[i] for c in choices} for i in (4, 2)]

        def answer(proposal: Proposal) -> Sequence[float] | None:
            return None if proposal.number % 5 == 3 else example_objectives(choices, proposal.widths)

        whole = drive(self.make(choices, seeds=seeds, budget=40, seed=5), choices, answer)
        for stop in (1, len(whole) // 2, len(whole) - 1):
            resumed = self.make(choices, seeds=seeds, budget=40, seed=5)
            resumed.replay([(p.widths, told) for p, told in whole[:stop]])
            assert drive(resumed, choices, answer) == whole[stop:]

    def test_answers_that_nobody_asked_for_are_refused(self) -> None:
        choices = example_choices()
        searcher = self.make(choices)
        proposal = searcher.ask()
        assert proposal is not None
        refused(lambda: searcher.tell(Proposal(10_000, proposal.widths), (1.0, 1.0)))
        searcher.tell(proposal, (1.0, 1.0))
        refused(lambda: searcher.tell(proposal, (1.0, 1.0)))

    def test_objectives_that_are_no_numbers_are_refused_and_can_be_told_again(self) -> None:
        choices = example_choices()
        searcher = self.make(choices)
        proposal = searcher.ask()
        assert proposal is not None
        for bad in ((math.nan, 1.0), (1.0, math.inf), (1.0,), (1.0, 2.0, 3.0)):
            refused(lambda bad=bad: searcher.tell(proposal, bad))  # type: ignore[misc]
        searcher.tell(proposal, None)

    def test_what_cannot_be_searched_is_refused(self) -> None:
        refused(lambda: self.make(()))
        refused(lambda: self.make(example_choices(), budget=0))
        refused(lambda: self.make(example_choices(), seeds=[{"a0": 4}]))
        refused(lambda: self.make(example_choices()).replay([({"nowhere": 4}, None)]))

    def test_global_random_state_is_left_alone(self) -> None:
        choices = example_choices()
        before = random.getstate(), np.random.get_state(legacy=False)
        drive(self.make(choices), choices)
        after = random.getstate(), np.random.get_state(legacy=False)
        assert repr(before) == repr(after)


def drive(
    searcher: Searcher,
    choices: Sequence[Choice],
    answer: Callable[[Proposal], Sequence[float] | None] | None = None,
) -> list[tuple[Proposal, Sequence[float] | None]]:
    """Ask and tell until the end; every proposal with its answer (by default that of the separable problem)."""
    done: list[tuple[Proposal, Sequence[float] | None]] = []
    while (proposal := searcher.ask()) is not None:
        told = example_objectives(choices, proposal.widths) if answer is None else answer(proposal)
        searcher.tell(proposal, told)
        done.append((proposal, told))
        if len(done) > 100_000:
            raise AssertionError(f"{searcher.name} does not end")
    return done


def refused(call: Callable[[], object]) -> None:
    """The call must raise UsageError with a message."""
    try:
        call()
    except UsageError as error:
        if str(error):
            return
        raise AssertionError("the UsageError says nothing") from error
    raise AssertionError("it was accepted; a UsageError was expected")
