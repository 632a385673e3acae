"""From guesses to a network that is right: try the likeliest values, and where that fails the next ones there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import product

from torch import nn

from paretoprune.graph.rebuild_compare import Difference
from paretoprune.graph.rebuild_slots import Slot

MAX_TRIES = 40
_PER_CLASS = 24

Attempt = Callable[[Sequence[int]], Difference | None]
"""Set every slot to the value given and compare; None if that is right."""
_Group = tuple[str, str, int | None]


def search(model: nn.Module, slots: Sequence[Slot], attempt: Attempt) -> tuple[list[int] | None, Difference | None]:
    """(values, None) of the slots at which the network is right, or (None, why the likeliest ones are wrong).

    Slots of the same name in modules of the same class go together: all take their n-th choice.
    """
    return _Search(model, slots, attempt).run()


class _Search:
    def __init__(self, model: nn.Module, slots: Sequence[Slot], attempt: Attempt):
        self._slots, self._attempt = slots, attempt
        classes = {path: type(module) for path, module in model.named_modules()}
        self._class = {path: kind.__qualname__ for path, kind in classes.items()}
        self._group = [(self._class[s.path], s.label, s.at) for s in slots]
        widest: dict[_Group, int] = defaultdict(int)
        for slot, group in zip(slots, self._group, strict=True):
            widest[group] = max(widest[group], len(slot.choices))
        self._open = {g: n for g, n in widest.items() if n > 1}
        self._rank: dict[_Group, int] = dict.fromkeys(widest, 0)
        self._tries = 0
        self._seen: set[tuple[int, ...]] = set()
        self._telling: Difference | None = None
        """The first reason, or the first at sizes at which the forward runs."""

    def run(self) -> tuple[list[int] | None, Difference | None]:
        found = self._try(self._rank)
        while found is not None:
            better = self._step(found)
            if better is None:
                return None, self._telling
            self._rank, found = better
        return self._values(self._rank), None

    def _step(self, found: Difference) -> tuple[dict[_Group, int], Difference | None] | None:
        """Other ranks under which the network is right or goes wrong elsewhere."""
        for ranks in self._others(found.path):
            if self._tries >= MAX_TRIES:
                return None
            if tuple(self._values(ranks)) in self._seen:
                continue
            now = self._try(ranks)
            if now is None or now.path not in (found.path, ""):
                return ranks, now
        return None

    def _try(self, ranks: dict[_Group, int]) -> Difference | None:
        values = self._values(ranks)
        self._seen.add(tuple(values))
        self._tries += 1
        found = self._attempt(values)
        if found is not None and (self._telling is None or (found.runs and not self._telling.runs)):
            self._telling = found
        return found

    def _values(self, ranks: dict[_Group, int]) -> list[int]:
        return [s.choices[min(ranks[g], len(s.choices) - 1)] for s, g in zip(self._slots, self._group, strict=True)]

    def _others(self, path: str) -> Iterator[dict[_Group, int]]:
        """Ranks to try next: first all of the class that went wrong, then those of the modules around it, then one of
        any class.
        """
        around = [path, *_owners(path)]
        for kind in dict.fromkeys(self._class[p] for p in around if p in self._class):
            groups = [g for g in self._open if g[0] == kind]
            yield from self._combinations(groups)
        for group in self._open:
            for rank in range(self._open[group]):
                yield {**self._rank, group: rank}

    def _combinations(self, groups: Sequence[_Group]) -> Iterator[dict[_Group, int]]:
        ranks = sorted(product(*(range(self._open[g]) for g in groups[:6])), key=lambda r: (sum(r), r))
        for chosen in ranks[:_PER_CLASS]:
            yield {**self._rank, **dict(zip(groups, chosen, strict=False))}


def _owners(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
