"""What each plan cut, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from paretoprune.core.candidate import Candidate
from paretoprune.report.data import ReportData, display_kind, removed
from paretoprune.report.metrics import figure, metric_of
from paretoprune.report.text import clean


@dataclass(frozen=True)
class Bar:
    name: str
    kept: int
    size: int | None

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


def cuts(data: ReportData) -> tuple[Cut, ...]:
    """For every plan that cut something; plans of members of the front first."""
    sharing: dict[tuple[tuple[str, tuple[int, ...]], ...], list[int]] = {}
    for i, row in enumerate(data.rows):
        if display_kind(row, data.axes) == "pruned":
            sharing.setdefault(tuple(sorted(row.plan.kept.items())), []).append(i)
    order = sorted(sharing.values(), key=lambda indices: not any(data.rows[i].on_front for i in indices))
    return tuple(_cut(tuple(indices), data) for indices in order)


def _cut(indices: tuple[int, ...], data: ReportData) -> Cut:
    row = data.rows[indices[0]]
    kept = {axis: len(positions) for axis, positions in row.plan.kept.items()}
    known = [Bar(clean(a), kept[a], size) for a, size in data.axes.items() if a in kept and kept[a] != size]
    unknown = [Bar(clean(a), kept[a], None) for a in kept if a not in data.axes]
    total = sum(data.axes.values())
    untouched = len(data.axes) - len(known)
    macs = _text(row, "macs")
    original = _text(data.original, "macs") if data.original else ""
    share = f"{macs} of {original}" if macs and original else macs
    chosen = any(data.rows[i].name == data.chosen for i in indices)
    return Cut(indices, chosen, (*known, *unknown), untouched, removed(row, data.axes), total, share)


def _text(row: Candidate, key: str) -> str:
    m = row.measurements.get(key)
    return str(figure(metric_of(key, m.unit), m)) if m is not None else ""
