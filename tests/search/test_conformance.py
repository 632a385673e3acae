"""Every searcher of ours keeps to the suite that plug-ins inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from paretoprune.core.protocols import Choice, Searcher
from paretoprune.search.table import SEARCHERS
from paretoprune.testing import SearcherCase


class _Ours(SearcherCase):
    name: str

    def make(self, choices: Sequence[Choice], **settings: Any) -> Searcher:
        return SEARCHERS[self.name](choices, **{"budget": 20, **settings})

    def test_its_name_is_the_one_in_the_table(self) -> None:
        choices = (Choice("a", (1, 2), (1.0, 0.0), (1.0, 2.0)),)
        assert self.make(choices).name == self.name


class TestKnapsack(_Ours):
    name = "knapsack"


class TestRandom(_Ours):
    name = "random"


class TestNSGA2(_Ours):
    name = "nsga2"


class TestTPE(_Ours):
    name = "tpe"


class _Twice:
    """A searcher that breaks the contract: it proposes one point for ever."""

    name = "twice"

    def __init__(self, choices: Sequence[Choice], **_: Any) -> None:
        self._widths = {c.axis: c.widths[0] for c in choices}
        self._left = 5

    def ask(self) -> Any:
        from paretoprune.core.protocols import Proposal

        self._left -= 1
        return Proposal(4 - self._left, self._widths) if self._left >= 0 else None

    def tell(self, proposal: Any, objectives: Any) -> None:
        pass

    def replay(self, past: Any) -> None:
        pass


class _BrokenCase(SearcherCase):
    def make(self, choices: Sequence[Choice], **settings: Any) -> Searcher:
        return _Twice(choices, **settings)


@pytest.mark.parametrize(
    "name",
    [
        "test_no_point_is_proposed_twice",
        "test_seeds_are_proposed_first",
        "test_it_ends_when_the_space_is_used_up",
        "test_answers_that_nobody_asked_for_are_refused",
        "test_what_cannot_be_searched_is_refused",
    ],
)
def test_the_suite_finds_a_searcher_that_breaks_the_contract(name: str) -> None:
    with pytest.raises(AssertionError):
        getattr(_BrokenCase(), name)()


def test_the_table_and_this_file_name_the_same_searchers() -> None:
    tested: set[str] = {case.name for case in (TestKnapsack, TestRandom, TestNSGA2, TestTPE)}
    assert tested == set(SEARCHERS)


def test_the_mapping_type_of_widths_does_not_matter() -> None:
    from types import MappingProxyType

    choices = (Choice("a", (1, 2), (1.0, 0.0), (1.0, 2.0)),)
    frozen: Mapping[str, int] = MappingProxyType({"a": 1})
    first = SEARCHERS["random"](choices, seeds=[frozen]).ask()
    assert first is not None
    assert first.widths == {"a": 1}
