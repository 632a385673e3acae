"""The space that is searched: one width for each axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence, Set

import numpy as np

from paretoprune.core.errors import UsageError
from paretoprune.core.protocols import Choice

Key = tuple[int, ...]
"""A point as the index of each axis's width."""


class Space:
    """The choices, checked. Points are written as widths by axis id outside and as a `Key` inside."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        if not choices:
            raise UsageError("nothing to search: no axis has a choice of widths")
        for choice in choices:
            _check(choice)
        self.choices = tuple(choices)
        self.axes = tuple(choice.axis for choice in choices)
        if len(set(self.axes)) != len(self.axes):
            twice = next(axis for axis in self.axes if self.axes.count(axis) > 1)
            raise UsageError(f"axis {twice!r} has more than one Choice; give one for each axis")
        self.size = math.prod(len(choice.widths) for choice in choices)

    def widths(self, key: Key) -> dict[str, int]:
        """Widths by axis id of a key."""
        return {c.axis: c.widths[i] for c, i in zip(self.choices, key, strict=True)}

    def key(self, widths: Mapping[str, int]) -> Key:
        """The key of widths by axis id. Raises UsageError for a missing or unknown axis or a width not offered."""
        for axis in widths:
            if axis not in self.axes:
                raise UsageError(f"widths name the axis {axis!r}, which is not searched; searched: {self._some_axes()}")
        key = []
        for choice in self.choices:
            if choice.axis not in widths:
                raise UsageError(f"widths lack the axis {choice.axis!r}; give a width for every axis that is searched")
            if widths[choice.axis] not in choice.widths:
                raise UsageError(f"axis {choice.axis!r}: width {widths[choice.axis]} is not one of {choice.widths}")
            key.append(choice.widths.index(widths[choice.axis]))
        return tuple(key)

    def unseen(self, seen: Set[Key], rng: np.random.Generator) -> Key | None:
        """A point drawn evenly from those not in `seen`, or None if there is none left."""
        sizes = [len(choice.widths) for choice in self.choices]
        if self.size > 2 * len(seen):
            while (key := tuple(int(rng.integers(size)) for size in sizes)) in seen:
                pass
            return key
        left = [key for key in itertools.product(*map(range, sizes)) if key not in seen]
        return left[int(rng.integers(len(left)))] if left else None

    def _some_axes(self) -> str:
        return ", ".join(self.axes[:8]) + (f" and {len(self.axes) - 8} more" if len(self.axes) > 8 else "")


def _check(choice: Choice) -> None:
    where = f"choice of axis {choice.axis!r}"
    widths = choice.widths
    if not widths:
        raise UsageError(f"{where}: there are no widths; give at least one")
    if not len(widths) == len(choice.error) == len(choice.cost):
        raise UsageError(
            f"{where}: {len(widths)} widths, {len(choice.error)} errors and {len(choice.cost)} costs; "
            "give one of each for every width"
        )
    if any(a >= b for a, b in itertools.pairwise(widths)) or widths[0] < 1:
        raise UsageError(f"{where}: widths must ascend from at least 1, got {widths}")
    for name, values in (("error", choice.error), ("cost", choice.cost)):
        for width, value in zip(widths, values, strict=True):
            if not math.isfinite(value):
                raise UsageError(f"{where}: the {name} of width {width} is {value}; give finite numbers")
