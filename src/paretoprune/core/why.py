"""Why a member is what it is, for people: what was cut, what that does alone, which classes paid, what recovered it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST_CLASSES = 5
MOST_AXES = 12


@dataclass(frozen=True)
class AxisWhy:
    """An axis that lost positions. `parameters`, `macs`: what went with them, this axis cut alone; None if unknown.

    `curve`: (width, damage) ascending: how far the outputs are from the original's when this axis alone is cut to that
    width and reconstructed (KL divergence in nats for class scores, else relative squared error).
    """

    axis: str
    kept: int
    size: int | None
    parameters: int | None
    macs: int | None
    curve: tuple[tuple[int, float], ...] = ()

    @property
    def damage(self) -> float | None:
        """The curve at the width that was kept, linear between measured widths; None where it was not measured."""
        if self.kept in (known := dict(self.curve)):
            return known[self.kept]
        for (a, x), (b, y) in zip(self.curve, self.curve[1:], strict=False):
            if a <= self.kept <= b:
                return x + (y - x) * (self.kept - a) / (b - a)
        return None


@dataclass(frozen=True)
class ClassWhy:
    """A class of the test set. `before` and `after`: how many of its `samples` the original and this network got right.

    `taken_for`: the class that it is mistaken for more often than before, with the counts (class, before, after).
    """

    label: int
    samples: int
    before: int
    after: int
    taken_for: tuple[int, int, int] | None = None

    @property
    def lost(self) -> float:
        """Recall that went, as a share."""
        return (self.before - self.after) / self.samples


@dataclass(frozen=True)
class Why:
    """An explanation: `str()` for a terminal, `to_json()` for machines.

    `parameters` and `macs` are (now, before) of the whole network. `axes`: those that lost positions, the most
    MACs first; `untouched` others kept everything. `classes`: those that lost recall, the most first. `unknown`:
    what cannot be told, and why. `zeros`: sentences on what weights hold.
    """

    name: str
    precision: str
    original: bool
    parameters: tuple[int, int] | None
    macs: tuple[int, int] | None
    axes: tuple[AxisWhy, ...]
    untouched: int
    blocks: tuple[str, ...]
    classes: tuple[ClassWhy, ...]
    recovery: str
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; each axis with its "damage", each class with its "recall_lost"."""
        found = asdict(self)
        for data, axis in zip(found["axes"], self.axes, strict=True):
            data["damage"] = axis.damage
        for data, one in zip(found["classes"], self.classes, strict=True):
            data["recall_lost"] = one.lost
        return found

    def __str__(self) -> str:
        return "\n".join([self.headline, *self._cut(), *self._classes(), *self._rest()])

    @property
    def headline(self) -> str:
        if self.original:
            return f"{self.name}: the original, nothing was cut"
        if not self.axes and not self.blocks and not self.zeros:
            return f"{self.name}: the original in {self.precision}, nothing was cut"
        went = [gone(what, pair) for what, pair in (("parameters", self.parameters), ("MACs", self.macs)) if pair]
        tail = f"; {', '.join(went)}" if went else ""
        total = len(self.axes) + self.untouched
        return f"{self.name} ({self.precision}): {len(self.axes)} of {total} axes were cut{tail}"

    def _cut(self) -> list[str]:
        blocks = [f"  blocks dropped: {', '.join(self.blocks)}"] if self.blocks else []
        others = [*blocks, *(f"  {text}" for text in self.zeros)]
        if not self.axes:
            return ["", "What was cut", *others] if others else []
        rows = [("axis", "kept", "parameters gone", "MACs gone", "damage alone")]
        rows += [
            (a.axis, f"{a.kept} of {_known(a.size)}", _known(a.parameters), _known(a.macs), _known(a.damage))
            for a in self.axes[:MOST_AXES]
        ]
        left = len(self.axes) - MOST_AXES
        more = [f"  and {left} more (in the JSON)"] if left > 0 else []
        return ["", "What was cut (each axis alone)", *_table(rows), *more, *others]

    def _classes(self) -> list[str]:
        if not self.classes:
            return []
        rows = [("class", "right before", "right now", "recall", "")]
        for one in self.classes[:MOST_CLASSES]:
            for_other = one.taken_for
            taken = f"taken for {for_other[0]}: {for_other[2]}, before {for_other[1]}" if for_other else ""
            change = f"{-100 * one.lost:+.1f} points".replace("-", "−")
            right = (f"{one.before} of {one.samples}", f"{one.after} of {one.samples}")
            rows.append((str(one.label), *right, change, taken))
        return ["", "Which classes lost most (test set)", *_table(rows)]

    def _rest(self) -> list[str]:
        lines = ["", f"Recovery: {self.recovery}"] if self.recovery else []
        return [*lines, *(f"  note: {n}" for n in self.notes), *(f"Not known: {text}" for text in self.unknown)]


def gone(what: str, pair: tuple[int, int]) -> str:
    """ "38 % of the MACs went (20,100,000 of 52,900,000)"."""
    now, before = pair
    share = f"{100 * (before - now) / before:.0f} %" if before else "nothing"
    return f"{share} of the {what} went ({before - now:,} of {before:,})"


def _known(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))).rstrip() for row in rows]
