"""Allocation by knapsack: the searcher that spends its budget on the front of the separable model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from paretoprune.core.protocols import Choice, Proposal
from paretoprune.search.allocate import allocate, spread
from paretoprune.search.ledger import Ledger, checked


class Knapsack:
    """Proposes `budget` allocations, evenly spread in log cost from the cheapest to the original, ends included.

    The order is coarse to fine, so that a search that is cut short has still covered the range. It needs nothing that
    it is told; answers are recorded in `told`. `seed` is taken for the protocol's sake: there is no chance in it.
    """

    name = "knapsack"

    def __init__(
        self, choices: Sequence[Choice], *, seeds: Sequence[Mapping[str, int]] = (), budget: int = 30, seed: int = 0
    ) -> None:
        own = spread(allocate(choices), max(1, budget))
        self._ledger = Ledger(choices, [*seeds, *(own[i].widths for i in _coarse_to_fine(len(own)))], budget)

    @property
    def told(self) -> tuple[tuple[Proposal, tuple[float, float] | None], ...]:
        """Every answer so far."""
        return tuple(self._ledger.told)

    def ask(self) -> Proposal | None:
        key = self._ledger.next_seed()
        return None if key is None or self._ledger.spent else self._ledger.open(key)

    def tell(self, proposal: Proposal, objectives: Sequence[float] | None) -> None:
        self._ledger.close(proposal, objectives)

    def replay(self, past: Iterable[tuple[Mapping[str, int], Sequence[float] | None]]) -> None:
        """Take up what an earlier run was told: those points are not proposed again and count as spent."""
        for widths, objectives in past:
            pair = checked(objectives)
            key = self._ledger.space.key(widths)
            if key not in self._ledger.seen:
                self.tell(self._ledger.open(key), pair)


def _coarse_to_fine(count: int) -> list[int]:
    """Both ends of 0..count-1, then the middle of every gap, breadth first."""
    order, gaps = [count - 1, 0][:count], deque([(0, count - 1)])
    while gaps:
        low, high = gaps.popleft()
        if high - low > 1:
            middle = (low + high) // 2
            order.append(middle)
            gaps += [(middle, high), (low, middle)]
    return order
