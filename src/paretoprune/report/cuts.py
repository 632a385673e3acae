"""What each plan cut, layer by layer; what that does alone; which classes paid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paretoprune.core.candidate import Candidate
from paretoprune.core.plan import Plan
from paretoprune.core.sparsity import told as zeros_told
from paretoprune.core.why import AxisWhy, ClassWhy, Why
from paretoprune.report.data import ReportData, display_kind, removed
from paretoprune.report.metrics import figure, metric_of
from paretoprune.report.text import clean, number

WIDE, HIGH, EDGE = 120, 32, 4
"""Pixels of a sensitivity curve, and the margin around it."""
SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Curve:
    """`points` of a polyline by pixel; `x`, `y`: the width that was kept; `damage` there, in words."""

    points: str
    x: float
    y: float
    damage: str


@dataclass(frozen=True)
class Paid:
    """What one file paid for the cut: classes that lost recall, most first. `more`: how many others lost too."""

    row: int
    classes: tuple[ClassWhy, ...]
    more: int


@dataclass(frozen=True)
class Bar:
    """`went`: what went with the axis alone, in words. `curve`: its sensitivity, None where it was not measured."""

    name: str
    kept: int
    size: int | None
    went: str = ""
    curve: Curve | None = None

    @property
    def share(self) -> float | None:
        return self.kept / self.size if self.size else None


@dataclass(frozen=True)
class Cut:
    """What one plan cut: a bar for each axis that lost positions (or of unknown size), in the network's order.

    `rows` are the networks that share the plan, e.g. its fp32 and its int8 file.
    """

    rows: tuple[int, ...]
    chosen: bool
    bars: tuple[Bar, ...]
    untouched: int
    removed: int
    total: int
    macs: str
    recovery: str = ""
    paid: tuple[Paid, ...] = ()
    unknown: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def cuts(data: ReportData) -> tuple[Cut, ...]:
    """For every plan that cut something; plans of members of the front first."""
    sharing: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(data.rows):
        if display_kind(row, data.axes) == "pruned":
            plan = row.plan
            key = tuple(sorted(plan.kept.items())), plan.blocks, tuple(sorted(plan.sparsity.items()))
            sharing.setdefault(key, []).append(i)
    order = sorted(sharing.values(), key=lambda indices: not any(data.rows[i].on_front for i in indices))
    return tuple(_cut(tuple(indices), data) for indices in order)


def _cut(indices: tuple[int, ...], data: ReportData) -> Cut:
    row = data.rows[indices[0]]
    kept = {axis: len(positions) for axis, positions in row.plan.kept.items()}
    told = data.whys.get(row.name)
    whys = {} if told is None else {a.axis: a for a in told.axes}
    worst = _worst(data)
    known = [_bar(a, kept[a], size, whys, worst) for a, size in data.axes.items() if a in kept and kept[a] != size]
    unknown = [_bar(a, kept[a], None, whys, worst) for a in kept if a not in data.axes]
    total = sum(data.axes.values())
    untouched = len(data.axes) - len(known)
    macs = _text(row, "macs")
    original = _text(data.original, "macs") if data.original else ""
    share = f"{macs} of {original}" if macs and original else macs
    chosen = any(data.rows[i].name == data.chosen for i in indices)
    return Cut(
        indices,
        chosen,
        (*known, *unknown),
        untouched,
        removed(row, data.axes),
        total,
        share,
        "" if told is None else clean(told.recovery),
        tuple(_paid(i, data.whys[data.rows[i].name]) for i in indices if data.rows[i].name in data.whys),
        () if told is None else tuple(clean(text) for text in told.unknown),
        tuple(clean(text) for text in _others(row.plan)),
    )


def _others(plan: Plan) -> list[str]:
    """What went beside positions of axes, as sentences."""
    blocks = [f"blocks dropped: {', '.join(plan.blocks)}"] if plan.blocks else []
    return [*blocks, *zeros_told(plan.sparsity)]


def _worst(data: ReportData) -> float:
    """The largest damage on any curve, so that all share one scale."""
    damages = [y for why in data.whys.values() for a in why.axes for _, y in a.curve if math.isfinite(y)]
    return max(damages, default=0.0)


def _bar(name: str, kept: int, size: int | None, whys: Mapping[str, AxisWhy], worst: float) -> Bar:
    why = whys.get(name)
    if why is None:
        return Bar(clean(name), kept, size)
    pairs = (("parameters", why.parameters), ("macs", why.macs))
    went = [f"−{_count(key, value)} {metric_of(key).title}" for key, value in pairs if value is not None]
    return Bar(clean(name), kept, size, ", ".join(went), _curve(why, worst))


def _count(key: str, value: int) -> str:
    factor, unit = metric_of(key).scale(value)
    return f"{number(value * factor)} {unit}".strip()


def _curve(why: AxisWhy, worst: float) -> Curve | None:
    """Width to the right, damage up by its square root: small damages would not be seen beside large ones."""
    damage = why.damage
    if damage is None or not worst > 0 or not all(math.isfinite(y) for _, y in why.curve):
        return None
    widest = why.curve[-1][0]

    def place(width: float, value: float) -> tuple[float, float]:
        x = EDGE + (WIDE - 2 * EDGE) * width / widest
        return round(x, 1), round(HIGH - EDGE - (HIGH - 2 * EDGE) * math.sqrt(max(value, 0.0) / worst), 1)

    points = " ".join(f"{x},{y}" for x, y in (place(w, v) for w, v in why.curve))
    return Curve(points, *place(why.kept, damage), number(damage))


def _paid(index: int, why: Why) -> Paid:
    return Paid(index, why.classes[:SHOWN_CLASSES], max(0, len(why.classes) - SHOWN_CLASSES))


def _text(row: Candidate, key: str) -> str:
    m = row.measurements.get(key)
    return str(figure(metric_of(key, m.unit), m)) if m is not None else ""
