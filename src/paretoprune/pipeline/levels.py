"""What a searcher's numbers mean where they are no widths: zeros in a weight, a residual block that goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Meaning:
    """`widths` of axes, `zeros`: weight -> what it holds, `blocks` that go."""

    widths: dict[str, int]
    zeros: dict[str, str]
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Levels:
    """`zeros`: choice -> (weight, what it may hold, sparsest first); level n + 1 of n is dense. `blocks`: choice ->
    block; at level 1 it goes, at 2 it stays."""

    zeros: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)

    def meaning(self, chosen: Mapping[str, int]) -> Meaning:
        """Of a searcher's choice."""
        found = Meaning({}, {}, tuple(block for choice, block in self.blocks.items() if chosen.get(choice) == 1))
        for name, level in chosen.items():
            if name in self.zeros:
                weight, texts = self.zeros[name]
                if level <= len(texts):
                    found.zeros[weight] = texts[level - 1]
            elif name not in self.blocks:
                found.widths[name] = level
        return found
