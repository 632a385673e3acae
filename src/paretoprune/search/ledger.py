"""What a searcher has asked and been told. Every searcher here keeps one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Choice, Proposal
from paretoprune.search.space import Key, Space


class Ledger:
    """Numbers proposals from 0, keeps them within `budget`, gives the seeds first and no point twice."""

    def __init__(self, choices: Sequence[Choice], seeds: Iterable[Mapping[str, int]], budget: int) -> None:
        if budget < 1:
            raise UsageError(f"budget={budget} proposals: there must be at least 1")
        self.space = Space(choices)
        self.budget = budget
        self.seeds = [self.space.key(seed) for seed in seeds]
        self.seen: set[Key] = set()
        self.told: list[tuple[Proposal, tuple[float, float] | None]] = []
        self._open: dict[int, Proposal] = {}
        self._next = 0

    @property
    def asked(self) -> int:
        return self._next

    @property
    def spent(self) -> bool:
        """Whether the budget or the space is used up."""
        return self._next >= self.budget or len(self.seen) >= self.space.size

    def next_seed(self) -> Key | None:
        """The next seed that was not proposed yet."""
        return next((key for key in self.seeds if key not in self.seen), None)

    def open(self, key: Key) -> Proposal:
        """Write down a new proposal."""
        proposal = Proposal(self._next, self.space.widths(key))
        self.seen.add(key)
        self._open[proposal.number] = proposal
        self._next += 1
        return proposal

    def close(self, proposal: Proposal, objectives: Sequence[float] | None) -> tuple[float, float] | None:
        """Write down an answer. Raises UsageError for one that nobody asked for, or for objectives that are none."""
        pair = checked(objectives)
        if self._open.get(proposal.number) != proposal:
            raise UsageError(
                f"proposal {proposal.number} is not open: it was told already, or another searcher proposed it"
            )
        del self._open[proposal.number]
        self.told.append((proposal, pair))
        return pair


def checked(objectives: Sequence[float] | None) -> tuple[float, float] | None:
    """(error, cost) as finite floats, or None for a failure."""
    if objectives is None:
        return None
    if len(objectives) != 2 or not all(math.isfinite(value) for value in objectives):
        raise UsageError(
            f"objectives {tuple(objectives)}: tell two finite numbers (error, cost), or None for a failure"
        )
    return float(objectives[0]), float(objectives[1])
