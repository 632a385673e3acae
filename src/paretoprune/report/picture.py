"""Accuracy against one cost: points, the step line of the front, limits, ranges. Numbers only, no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paretoprune.core.candidate import Candidate
from paretoprune.core.measurement import Measurement
from paretoprune.report.bounds import LimitLine
from paretoprune.report.data import ReportData
from paretoprune.report.metrics import Metric, metric_of
from paretoprune.report.text import has_interval

QUALITY = "accuracy"
COSTS = ("latency_ms", "energy_mj", "size_bytes")
_LOG_FROM = 6.0
"""A cost that spans at least this ratio is drawn on a logarithmic axis."""

Span = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """Row number and position in the units of the axes; spans are (low, high) where there is an interval."""

    row: int
    x: float
    y: float
    x_span: Span | None
    y_span: Span | None


@dataclass(frozen=True)
class Panel:
    """One picture. `steps` are the corners of the front's step line; `outside` are limits beyond the ranges."""

    metric: Metric
    x_title: str
    log: bool
    points: tuple[Point, ...]
    steps: tuple[tuple[float, float], ...]
    x_range: Span
    y_range: Span
    x_limit: float | None
    y_limit: float | None
    outside: tuple[str, ...]


def panels(data: ReportData) -> tuple[Panel, ...]:
    """A panel for each usual cost and each objective that was taken for some row that also has an accuracy."""
    keys = [*COSTS, *(key for key in data.objectives if not metric_of(key).larger_is_better)]
    drawn = (_panel(data, metric_of(key, _unit(data.rows, key))) for key in dict.fromkeys(keys))
    return tuple(panel for panel in drawn if panel.points)


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, quality) points that no other beats, by rising cost and strictly rising quality."""
    stairs: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not stairs or y > stairs[-1][1]:
            stairs.append((x, y))
    return stairs


def corners(stairs: Sequence[tuple[float, float]], right: float) -> list[tuple[float, float]]:
    """The line of what is reachable at each cost: level to the next stair, then up, and on to `right`."""
    line: list[tuple[float, float]] = []
    for x, y in stairs:
        if line:
            line.append((x, line[-1][1]))
        line.append((x, y))
    if line and right > line[-1][0]:
        line.append((right, line[-1][1]))
    return line


def _panel(data: ReportData, metric: Metric) -> Panel:
    taken = [(i, m, q) for i, row in enumerate(data.rows) if (m := _finite(row, metric.key)) and (q := _finite(row))]
    factor, unit = metric.scale(max((m.value for _, m, _ in taken), default=0.0))
    points = tuple(Point(i, m.value * factor, q.value * 100, _span(m, factor), _span(q, 100)) for i, m, q in taken)
    xs = [x for p in points for x in (p.x, *(p.x_span or ()))]
    ys = [y for p in points for y in (p.y, *(p.y_span or ()))]
    log = bool(xs) and min(xs) > 0 and max(xs) / min(xs) >= _LOG_FROM
    x_limit, x_out = _limit(data.limits.lines, metric.key, factor, xs)
    y_limit, y_out = _limit(data.limits.lines, QUALITY, 100, ys)
    x_range = _padded([*xs, *([x_limit] if x_limit is not None else [])], log)
    y_range = _padded([*ys, *([y_limit] if y_limit is not None else [])], False)
    stairs = staircase([(p.x, p.y) for p in points if data.rows[p.row].on_front])
    estimated = any(m.status != "measured" for _, m, _ in taken)
    details = [unit] * bool(unit) + ["estimated"] * estimated + ["log scale"] * log
    title = metric.title + (f" ({', '.join(details)})" if details else "")
    steps = tuple(corners(stairs, x_range[1]))
    return Panel(metric, title, log, points, steps, x_range, y_range, x_limit, y_limit, x_out + y_out)


def _finite(row: Candidate, key: str = QUALITY) -> Measurement | None:
    m = row.measurements.get(key)
    return m if m is not None and math.isfinite(m.value) else None


def _unit(rows: Sequence[Candidate], key: str) -> str:
    return next((m.unit for row in rows if (m := row.measurements.get(key))), "")


def _span(m: Measurement, factor: float) -> Span | None:
    return (m.low * factor, m.high * factor) if has_interval(m) else None


def _limit(
    limits: Sequence[LimitLine], key: str, factor: float, values: Sequence[float]
) -> tuple[float | None, tuple[str, ...]]:
    """The bound in the axis's unit if it lies near the values; else the texts of the limits that lie outside."""
    bounds = [(line.bound * factor, line.text) for line in limits if line.metric == key and line.bound is not None]
    if not bounds or not values:
        return None, ()
    reach = 0.6 * (max(values) - min(values)) + 0.02 * abs(max(values))
    near = [b for b, _ in bounds if min(values) - reach <= b <= max(values) + reach]
    far = tuple(text for b, text in bounds if b not in near)
    tightest = (max if metric_of(key).larger_is_better else min)(near) if near else None
    return tightest, far


def _padded(values: Sequence[float], log: bool) -> Span:
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    if log:
        pad = (high / low) ** 0.06
        return (low / pad, high * pad)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low - pad if low < 0 or low > pad else 0.0, high + pad)
