"""The metrics that a report knows: title, unit to show, and how a figure is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paretoprune.core.candidate import Candidate
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import QUALITIES, Quality, validation_key
from paretoprune.report.text import BYTES, COUNTS, clean, has_interval, number, scaled


@dataclass(frozen=True)
class Metric:
    """`factor` takes the stored value to `unit`; `steps` picks unit by size instead (bytes, counts)."""

    key: str
    title: str
    unit: str = ""
    factor: float = 1.0
    steps: tuple[tuple[float, str], ...] = ()
    larger_is_better: bool = False

    def scale(self, reference: float) -> tuple[float, str]:
        """(factor, unit) that suits values about as large as `reference`."""
        if not self.steps:
            return self.factor, self.unit
        divisor, unit = scaled(reference, self.steps)
        return 1 / divisor, unit


def _of(quality: Quality) -> Metric:
    unit, factor = {"share": ("%", 100.0), "x": ("×", 1.0)}.get(quality.unit, ("", 1.0))
    unit = "points" if quality.key == "generalisation_gap" else unit
    title = "F1" if quality.name == "f1" else quality.name
    return Metric(quality.key, title, unit, factor, larger_is_better=quality.larger)


QUALITY = tuple(map(_of, QUALITIES))
"""Figures of the answers: in a table of their own."""
ENERGY = (
    Metric("energy_gross_mj", "energy with idle power", "mJ"),
    Metric("energy_per_correct_mj", "energy per correct answer", "mJ"),
    Metric("power_w", "power", "W"),
    Metric("idle_w", "idle power", "W"),
    Metric("w_per_frame", "power per frame rate", "W/(frame/s)"),
    Metric("fps", "frames per second", "1/s", larger_is_better=True),
)
"""What follows from energy and time: in a table of their own, too."""
_TOKENS = (
    Metric("first_token_ms", "time to first token", "ms"),
    Metric("per_token_ms", "time per token", "ms"),
    Metric("per_token_p95_ms", "time per token, 95 %", "ms"),
    Metric("tokens_per_s", "tokens per second", "1/s", larger_is_better=True),
)
METRICS = (
    Metric("accuracy", "accuracy", "%", 100, larger_is_better=True),
    Metric("validation", "validation accuracy", "%", 100, larger_is_better=True),
    Metric("latency_ms", "latency", "ms"),
    Metric("speedup", "speedup", "×", larger_is_better=True),
    Metric("energy_mj", "energy", "mJ"),
    Metric("energy_analytic_mj", "energy by operations", "mJ"),
    Metric("size_bytes", "file size", steps=BYTES),
    Metric("memory_bytes", "peak memory", steps=BYTES),
    Metric("macs", "MACs", steps=COUNTS),
    Metric("parameters", "parameters", steps=COUNTS),
    Metric("wall_ms", "wall time", "ms"),
    Metric("baseline_latency_ms", "original in the same run", "ms"),
)
_BY_KEY = {metric.key: metric for metric in (*METRICS, *QUALITY, *ENERGY, *_TOKENS)}
_ELSEWHERE = {*_BY_KEY, *(validation_key(metric.key) for metric in QUALITY)}


def metric_of(key: str, unit: str = "") -> Metric:
    """The known metric, or a plain one for a user's own measurement."""
    return _BY_KEY.get(key) or Metric(key, clean(key.replace("_", " ")), clean(unit, 20))


def metrics_in(rows: tuple[Candidate, ...]) -> tuple[Metric, ...]:
    """Every metric that some row has: the known ones in their usual order, then a user's own by name.

    Without the figures of quality, which `quality_in` gives, and those of `ENERGY`.
    """
    units = {key: m.unit for row in rows for key, m in row.measurements.items()}
    known = [metric for metric in METRICS if metric.key in units]
    own = [metric_of(key, units[key]) for key in sorted(units) if key not in _ELSEWHERE]
    return (*known, *own)


def quality_in(rows: tuple[Candidate, ...]) -> tuple[Metric, ...]:
    """Every figure of quality that some row has, in the usual order."""
    return tuple(metric for metric in QUALITY if any(metric.key in row.measurements for row in rows))


@dataclass(frozen=True)
class Figure:
    """A measurement as text: "0.412", "0.401 to 0.425" (empty if it has no interval), "ms"."""

    value: str
    interval: str
    unit: str
    estimated: bool
    note: str = ""

    def __str__(self) -> str:
        text = f"{'~' if self.estimated else ''}{with_unit(self.value, self.unit)}"
        text += f" ({self.interval})" if self.interval else ""
        return text + " estimated" if self.estimated else text


def figure(metric: Metric, m: Measurement) -> Figure:
    factor, unit = metric.scale(m.value)
    interval = f"{_digits(metric, m.low * factor)} to {_digits(metric, m.high * factor)}" if has_interval(m) else ""
    estimated = m.status != "measured"
    unit = unit if math.isfinite(m.value) else ""
    return Figure(_digits(metric, m.value * factor), interval, unit, estimated, clean(m.note))


def with_unit(value: str, unit: str) -> str:
    return f"{value}{unit}" if unit in ("×", "") else f"{value} {unit}"


def _digits(metric: Metric, value: float) -> str:
    """Shares of a test set are written to a tenth of a percent: more would be noise."""
    return f"{value:.1f}" if metric.unit in ("%", "points") and math.isfinite(value) else number(value)
