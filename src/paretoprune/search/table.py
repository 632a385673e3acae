"""The searchers by name. A new one is a file beside this and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paretoprune.core.errors import UsageError
from paretoprune.core.plugin import look_up
from paretoprune.core.protocols import Choice, Searcher
from paretoprune.search.knapsack import Knapsack
from paretoprune.search.nsga2 import NSGA2
from paretoprune.search.random import RandomSearch
from paretoprune.search.tpe import TPE

SEARCHERS: Mapping[str, Callable[..., Searcher]] = {
    "knapsack": Knapsack,
    "nsga2": NSGA2,
    "random": RandomSearch,
    "tpe": TPE,
}


def make_searcher(
    given: str | Searcher | Callable[..., Searcher],
    choices: Sequence[Choice],
    *,
    seeds: Sequence[Mapping[str, int]] = (),
    budget: int,
    seed: int = 0,
) -> Searcher:
    """A searcher by name, by reference ("pkg.mod:Class"), from a class or function, or the ready object itself.

    A class or function is called as `given(choices, seeds=..., budget=..., seed=...)`; `budget` counts proposals.
    """
    found = look_up("searcher", given, SEARCHERS)
    searcher: Any = found
    if callable(found) and (isinstance(found, type) or not hasattr(found, "ask")):
        searcher = found(choices, seeds=seeds, budget=budget, seed=seed)
    lacking = [name for name in ("name", "ask", "tell", "replay") if not hasattr(searcher, name)]
    if lacking:
        raise UsageError(f"searcher {given!r} lacks {', '.join(lacking)}; it must follow core.protocols.Searcher")
    ready: Searcher = searcher
    return ready
