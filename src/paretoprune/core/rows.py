"""Candidates as rows for JSON, tables and spreadsheets. None is what was not measured; it is never 0."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from typing import Any

from paretoprune.core import quality
from paretoprune.core.candidate import Candidate

METRICS = (
    "accuracy",
    "validation",
    "latency_ms",
    "speedup",
    "energy_mj",
    "energy_analytic_mj",
    "energy_gross_mj",
    "energy_per_correct_mj",
    "power_w",
    "idle_w",
    "w_per_frame",
    "fps",
    "size_bytes",
    "memory_bytes",
    "macs",
    "parameters",
    *quality.KEYS,
)
COUNTS = ("size_bytes", "memory_bytes", "macs", "parameters")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def row(candidate: Candidate) -> dict[str, Any]:
    """A JSON-ready row: absolute path, shares from 0 to 1, `intervals` as metric -> [low, high].

    `estimated`: the metrics here that were not measured. `validation_figures`: those that limits are judged by, where
    there are any beside the accuracy.
    """
    energy = candidate.measurements.get("energy_mj")
    return {
        "name": candidate.name,
        "original": candidate.original,
        "on_front": candidate.on_front,
        "meets_limits": candidate.meets_limits,
        "path": os.path.abspath(candidate.path),
        "precision": candidate.precision,
        "threads": candidate.threads,
        "batch": candidate.batch,
        **{metric: _number(metric, candidate.value(metric)) for metric in METRICS},
        "energy_status": None if energy is None else energy.status,
        "estimated": [metric for metric in METRICS if _is_estimate(candidate, metric)],
        "intervals": {
            metric: [_number(metric, m.low), _number(metric, m.high)]
            for metric, m in candidate.measurements.items()
            if metric in METRICS
        },
        "validation_figures": {
            key: _number(key, candidate.value(other))
            for key in quality.KEYS
            if (other := quality.validation_key(key)) in candidate.measurements
        },
    }


def _is_estimate(candidate: Candidate, metric: str) -> bool:
    found = candidate.measurements.get(metric)
    return found is not None and found.status != "measured"


def to_csv(candidates: Sequence[Candidate]) -> str:
    """The rows as CSV, an interval as two columns. Text that a spreadsheet would run as a formula is quoted by '."""
    flat = [_flat(row(candidate)) for candidate in candidates]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in line.items()} for line in flat)
    return out.getvalue()


def _number(metric: str, value: float | None) -> float | int | None:
    """JSON has no NaN or infinity: they become None too."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if metric in COUNTS and float(value).is_integer() else float(value)


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    intervals = line.pop("intervals")
    del line["validation_figures"]
    line["estimated"] = " ".join(line["estimated"])
    for metric in METRICS:
        line[f"{metric}_low"], line[f"{metric}_high"] = intervals.get(metric, (None, None))
    return line


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return "'" + value
    return value
