"""The page's table, tiles and stage bars as plain values for the template."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paretoprune.core.candidate import Candidate
from paretoprune.report.data import ReportData, display_kind
from paretoprune.report.metrics import Figure, Metric, figure, metric_of, metrics_in, quality_in
from paretoprune.report.text import clean, duration, number


@dataclass(frozen=True)
class Cell:
    """`sort` orders the column; None where nothing was taken (it sorts last, and is not zero)."""

    figure: Figure | None
    sort: float | None


@dataclass(frozen=True)
class Row:
    number: int
    name: str
    kind: str
    precision: str
    color: int
    on_front: bool
    meets_limits: bool
    chosen: bool
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...]

    @property
    def label(self) -> str:
        if self.kind == "original":
            return "the original"
        return f"the original in {self.precision}" if self.kind == "unpruned" else ""


@dataclass(frozen=True)
class Column:
    """`estimated`: "all", "some" or "none" of its figures."""

    metric: Metric
    estimated: str


def columns(data: ReportData) -> tuple[Column, ...]:
    return tuple(Column(metric, _estimated(data, metric.key)) for metric in metrics_in(data.rows))


def _estimated(data: ReportData, key: str) -> str:
    taken = [m.status != "measured" for row in data.rows if (m := row.measurements.get(key))]
    return "all" if all(taken) else ("some" if any(taken) else "none")


def rows(data: ReportData) -> tuple[Row, ...]:
    return tuple(
        Row(
            i,
            clean(c.name, 120),
            display_kind(c, data.axes),
            clean(c.precision, 20),
            color(c.precision),
            c.on_front,
            c.meets_limits,
            c.name == data.chosen,
            tuple(_cell(c, metric) for metric in metrics_in(data.rows)),
            tuple(clean(text) for text in data.limits.remarks.get(c.name, ())),
        )
        for i, c in enumerate(data.rows)
    )


@dataclass(frozen=True)
class QualityRow:
    number: int
    cells: tuple[Cell, ...]


def quality(data: ReportData) -> tuple[tuple[Column, ...], tuple[QualityRow, ...]]:
    """Columns and rows of the table of figures of quality; no columns where nobody has any."""
    metrics = quality_in(data.rows)
    shown = tuple(Column(metric, "none") for metric in metrics)
    return shown, tuple(QualityRow(i, tuple(_cell(c, m) for m in metrics)) for i, c in enumerate(data.rows))


def disturbances(data: ReportData) -> tuple[str, ...]:
    """How inputs were disturbed: one sentence for each robust accuracy, from the measurement's own note."""
    found = [
        f"{metric.title}: {m.note}"
        for metric in quality_in(data.rows)
        for row in data.rows
        if metric.key.startswith("robust_") and (m := row.measurements.get(metric.key)) and m.note
    ]
    return tuple(clean(text, 400) for text in dict.fromkeys(found))


def absent(data: ReportData) -> tuple[str, ...]:
    """A sentence for each figure that could not be taken, with the reason; each once."""
    found = [f"{metric_of(key).title}: {why}" for row in data.rows for key, why in row.absent.items()]
    return tuple(clean(text, 400) for text in dict.fromkeys(found))


def color(precision: str) -> int:
    """The same colour and shape on every page; precisions that are not listed share the last."""
    return {"fp32": 0, "int8": 1, "bf16": 2}.get(precision, 3)


def precisions(data: ReportData) -> list[tuple[str, int]]:
    """(name, colour) of every precision, by colour."""
    found = sorted({row.precision for row in data.rows}, key=lambda p: (color(p), p))
    return [(clean(p, 20), color(p)) for p in found]


def _cell(row: Candidate, metric: Metric) -> Cell:
    m = row.measurements.get(metric.key)
    if m is None:
        return Cell(None, None)
    return Cell(figure(metric, m), m.value if math.isfinite(m.value) else None)


@dataclass(frozen=True)
class Tile:
    """One figure of the chosen member beside the original's."""

    title: str
    value: str
    interval: str
    against: str
    estimated: bool


def tiles(data: ReportData) -> tuple[Tile, ...]:
    row = data.chosen_row
    if row is None:
        return ()
    keys = ("speedup", "accuracy", "latency_ms", "size_bytes", "energy_mj")
    return tuple(_tile(key, row, data.original) for key in keys if key in row.measurements)


def _tile(key: str, row: Candidate, original: Candidate | None) -> Tile:
    m, metric = row.measurements[key], metric_of(key)
    shown = figure(metric, m)
    base = original.measurements.get(key) if original is not None and not row.original else None
    against = ""
    if key == "speedup":
        against = "over the original, paired"
    elif base is not None:
        against = f"original {_plain(figure(metric, base))}{_change(key, m.value, base.value)}"
    value = f"{shown.value} {shown.unit}" if shown.unit != "×" else f"{shown.value}×"
    return Tile(metric.title, value, shown.interval, against, shown.estimated)


def _plain(shown: Figure) -> str:
    return f"{'~' if shown.estimated else ''}{shown.value} {shown.unit}".strip()


def _change(key: str, value: float, base: float) -> str:
    if not (math.isfinite(value) and math.isfinite(base)):
        return ""
    if key == "accuracy":
        points = (value - base) * 100
        if abs(points) < 0.05:
            return ", unchanged"
        return f", {abs(points):.1f} points {'more' if points > 0 else 'less'}"
    if key != "latency_ms" and value > 0 and base > 0:
        return f", {number(100 * value / base)} % of it"
    return ""


@dataclass(frozen=True)
class StageBar:
    name: str
    time: str
    share: float


def stage_bars(stages: tuple[tuple[str, float], ...]) -> tuple[StageBar, ...]:
    """Each stage's share of the sum. Negative or non-finite times (a clock that jumped) get no bar."""
    total = sum(s for _, s in stages if math.isfinite(s) and s > 0)
    return tuple(
        StageBar(clean(name), duration(s), s / total if math.isfinite(s) and s > 0 else 0.0) for name, s in stages
    )
