"""What a searcher's numbers mean where they are no widths: levels of zeros in a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Levels:
    """`by_choice`: choice name -> (weight, what it may hold, sparsest first). Level n + 1 of n is dense."""

    by_choice: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    def split(self, widths: Mapping[str, int]) -> tuple[dict[str, int], dict[str, str]]:
        """(widths of axes, weight -> what it holds) of a searcher's choice."""
        axes = {a: w for a, w in widths.items() if a not in self.by_choice}
        zeros: dict[str, str] = {}
        for name, level in widths.items():
            weight, texts = self.by_choice.get(name, ("", ()))
            if 1 <= level <= len(texts):
                zeros[weight] = texts[level - 1]
        return axes, zeros
