"""What the page's script draws, as JSON values: no NaN, no markup."""

from __future__ import annotations

from typing import Any

from paretoprune.core.candidate import Candidate
from paretoprune.report.data import ReportData
from paretoprune.report.metrics import figure, metric_of
from paretoprune.report.picture import Panel
from paretoprune.report.view import Row

_HOVER = ("accuracy", "latency_ms", "speedup", "energy_mj", "size_bytes")


def script_data(data: ReportData, table: tuple[Row, ...], drawn: tuple[Panel, ...]) -> dict[str, Any]:
    """Rows by number, and the panels that refer to them."""
    return {
        "rows": [_script_row(row, data.rows[row.number]) for row in table],
        "panels": [_script_panel(panel) for panel in drawn],
    }


def _script_row(row: Row, candidate: Candidate) -> dict[str, Any]:
    lines = []
    for key in _HOVER:
        m = candidate.measurements.get(key)
        if m is not None:
            metric = metric_of(key, m.unit)
            lines.append(f"{metric.title} {figure(metric, m)}")
    return {
        "name": row.name,
        "kind": row.kind,
        "label": row.label,
        "precision": row.precision,
        "color": row.color,
        "front": row.on_front,
        "meets": row.meets_limits,
        "chosen": row.chosen,
        "lines": lines,
    }


def _script_panel(panel: Panel) -> dict[str, Any]:
    return {
        "title": panel.x_title,
        "log": panel.log,
        "points": [
            {"row": p.row, "x": p.x, "y": p.y, "xs": _pair(p.x_span), "ys": _pair(p.y_span)} for p in panel.points
        ],
        "steps": [list(corner) for corner in panel.steps],
        "xRange": list(panel.x_range),
        "yRange": list(panel.y_range),
        "xLimit": panel.x_limit,
        "yLimit": panel.y_limit,
    }


def _pair(span: tuple[float, float] | None) -> list[float] | None:
    return None if span is None else list(span)
