"""The Pareto front of what was measured.

Only measurements decide who is on it. An estimate (energy without a counter) is never an objective, and a difference
within the measurement noise is no difference.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from paretoprune.core import rows
from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import UnreachableLimitError, UsageError
from paretoprune.core.hypervolume import Points, hypervolume
from paretoprune.core.limits import JUDGES, Limits
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import QUALITIES, judged_key, validation_key
from paretoprune.core.why import Why

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = ("accuracy", "latency_ms")
_LARGER = tuple(q.key for q in QUALITIES if q.larger)
UPWARD = ("accuracy", "validation", "speedup", "fps", *_LARGER, *map(validation_key, _LARGER))
"""Metrics of which more is better; of all others less is."""
_SHORT = {
    "latency": "latency_ms",
    "energy": "energy_mj",
    "size": "size_bytes",
    "memory": "memory_bytes",
    "power": "power_w",
} | {q.name: q.key for q in QUALITIES if q.name != q.key}


def metric_key(name: str) -> str:
    """The key of a metric, with or without its unit: "latency" is "latency_ms". Raises UsageError."""
    key = _SHORT.get(name, name)
    if key not in rows.METRICS:
        raise UsageError(f"unknown metric {name!r}; write one of {', '.join([*_SHORT, *rows.METRICS])}")
    return key


def dominates(a: Candidate, b: Candidate, objectives: Sequence[str] = OBJECTIVES) -> bool:
    """Whether `a` is at least as good as `b` in every objective and better beyond the noise in one.

    Beyond the noise: the intervals are disjoint. Latencies are compared by the speed-ups over the original where both
    have one: those were measured in pairs, so that a machine that slowed down in between does not count. Raises
    UsageError if an objective is missing or only estimated.
    """
    keys = [_paired(a, b, metric_key(name)) for name in objectives]
    pairs = [(_need(a, key), _need(b, key), key in UPWARD) for key in keys]
    if any((x.value < y.value) if up else (x.value > y.value) for x, y, up in pairs):
        return False
    return any((x.low > y.high) if up else (x.high < y.low) for x, y, up in pairs)


def _paired(a: Candidate, b: Candidate, key: str) -> str:
    both = _measured(a, "speedup") and _measured(b, "speedup")
    return "speedup" if key == "latency_ms" and both else key


@dataclass(frozen=True)
class Front:
    """`members`: the candidates on the front, cheapest first; `candidates`: every measured one.

    Picks (`best`, `knee`) and limits take accuracy from `judge`: "validation" (the search's share, used if every
    candidate has it) or "accuracy" (the test share, which is for reporting). `target` describes runtime and machine.
    """

    members: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    limits: Limits = field(default_factory=Limits)
    objectives: tuple[str, ...] = OBJECTIVES
    judge: str = "validation"
    target: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        limits: Limits | None = None,
        objectives: Sequence[str] = OBJECTIVES,
        *,
        judge: str = "validation",
        target: Mapping[str, str] | None = None,
    ) -> Front:
        """Mark `on_front` and `meets_limits` on copies of the candidates.

        May be on the front: every objective measured and, unless it is the original, faster than the original beyond
        the noise (the low end of its "speedup" is above 1). Is on it: not dominated by another that may be.
        Raises UsageError unless exactly one candidate is the original and every objective was measured on it.
        """
        limits = Limits() if limits is None else limits
        keys = tuple(metric_key(name) for name in objectives)
        original = _original(candidates)
        _check_objectives(original, keys)
        judge = _judge(candidates, judge)
        able = [c for c in candidates if _is_faster(c) and all(_measured(c, key) for key in keys)]
        marked = tuple(
            replace(
                c,
                on_front=any(c is d for d in able) and not any(dominates(d, c, keys) for d in able),
                meets_limits=limits.met(c.measurements, original.measurements, judge),
            )
            for c in candidates
        )
        members = sorted((c for c in marked if c.on_front), key=lambda c: [_loss(c, key) for key in reversed(keys)])
        return cls(tuple(members), marked, limits, keys, judge, dict(target or {}))

    @property
    def original(self) -> Candidate:
        """The fp32 network that everything is compared with."""
        return _original(self.candidates)

    def best(self, metric: str) -> Candidate:
        """The member with the best `metric` that meets the limits; the more accurate one of equals.

        A measured figure goes before an estimated one. Raises UnreachableLimitError if no member meets the limits.
        """
        key = metric_key(metric)
        key = self._judged(key)
        able = [c for c in self._eligible() if c.value(key) is not None]
        able = [c for c in able if _measured(c, key)] or able
        if not able:
            raise UsageError(f"no member of the front has {metric} measured; there is {', '.join(self._known())}")
        return min(able, key=lambda c: (_loss(c, key), _loss(c, self.judge), c.name))

    def knee(self) -> Candidate:
        """The member that meets the limits and lies farthest below the chord between the extremes.

        Objectives are scaled to 0..1 over those members, the chord (the plane, with more than two objectives) is
        sum = 1 (Das, "On characterizing the knee of the Pareto curve", Structural Optimization 18, 1999). Where
        nothing lies below it (one or two members, a concave front) the cheapest of the farthest is taken.
        """
        able = self._eligible()
        keys = [self._judged(key) for key in self.objectives]
        losses = np.array([[_loss(c, key) for key in keys] for c in able])
        span = losses.max(axis=0) - losses.min(axis=0)
        scaled = (losses - losses.min(axis=0)) / np.where(span > 0, span, 1.0)
        below = np.round(1.0 - scaled.sum(axis=1), 12)
        order = sorted(range(len(able)), key=lambda i: (-below[i], *reversed(losses[i]), able[i].name))
        return able[order[0]]

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """Volume that the members dominate, in the product of the objectives' units.

        `reference`: metric -> value, one for each objective; by default the worst measured values of the candidates.
        """
        worst = self._worst() if reference is None else self._reference(reference)
        losses = [[_loss(c, key) for key in self.objectives] for c in self.members]
        points = np.array(losses, dtype=np.float64).reshape(len(losses), len(self.objectives))
        return hypervolume(points, worst)

    def candidate(self, name: str) -> Candidate:
        """The measured candidate of that name. Raises UsageError that lists them."""
        named = {c.name: c for c in self.candidates}
        if name not in named:
            near = difflib.get_close_matches(str(name), named, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"no candidate {name!r}: there are {', '.join(named)}{hint}")
        return named[name]

    def explain(self, name: str) -> Why:
        """Why the candidate of that name is what it is: `str()` for people, `to_json()` for machines."""
        return self.candidate(name).why()

    def to_rows(self) -> list[dict[str, Any]]:
        """Every measured candidate as a JSON-ready dict."""
        return [rows.row(candidate) for candidate in self.candidates]

    def to_frame(self) -> pd.DataFrame:
        """The rows as a pandas table. Raises UsageError where pandas is not installed."""
        try:
            import pandas as pd
        except ImportError as missing:
            raise UsageError("to_frame() needs pandas: `pip install pandas`, or use to_rows()") from missing
        return pd.DataFrame(self.to_rows())

    def to_csv(self) -> str:
        """The rows as CSV, safe to open in a spreadsheet."""
        return rows.to_csv(self.candidates)

    def _eligible(self) -> list[Candidate]:
        if not self.members:
            raise UsageError("the front is empty: no candidate was measured in every objective")
        able = [c for c in self.members if c.meets_limits]
        # Limits are judged on validation, the front on test: what meets them may lie just behind the front.
        able = able or [c for c in self.candidates if c.meets_limits and _is_faster(c)]
        if able:
            return able
        raise UnreachableLimitError(self.unmet() or f"no network that is faster than the original meets {self.limits}")

    def unmet(self) -> str | None:
        """Why no network that is really faster than the original (nor itself) meets the limits; None if one does."""
        faster = [c for c in self.candidates if _is_faster(c)]
        return self.limits.unreachable(faster, self.original.measurements, self.judge)

    def _judged(self, key: str) -> str:
        """Where picks look: the figure of the validation set, where every candidate has it."""
        return judged_key(key, self.judge, *(c.measurements for c in self.candidates))

    def _known(self) -> list[str]:
        return [key for key in rows.METRICS if any(c.value(key) is not None for c in self.members)]

    def _worst(self) -> Points:
        return np.array(
            [max(_loss(c, key) for c in self.candidates if _measured(c, key)) for key in self.objectives],
            dtype=np.float64,
        )

    def _reference(self, given: Mapping[str, float]) -> Points:
        values = {metric_key(name): float(value) for name, value in given.items()}
        if set(values) != set(self.objectives):
            raise UsageError(
                f"the reference names {', '.join(map(repr, given)) or 'nothing'}; "
                f"give one value for each objective: {', '.join(self.objectives)}"
            )
        for key, value in values.items():
            if not math.isfinite(value):
                raise UsageError(f"the reference of {key} is {value}; give a finite number")
        return np.array([-values[k] if k in UPWARD else values[k] for k in self.objectives], dtype=np.float64)


def _measured(candidate: Candidate, key: str) -> Measurement | None:
    """The measurement, unless it is an estimate or no number."""
    taken = candidate.measurements.get(key)
    if taken is None or taken.status != "measured" or not math.isfinite(taken.value):
        return None
    return taken


def _need(candidate: Candidate, key: str) -> Measurement:
    taken = _measured(candidate, key)
    if taken is None:
        how = "was only estimated" if key in candidate.measurements else "was not measured"
        raise UsageError(f"{candidate.name}: {key} {how}; only a measured metric can be an objective")
    return taken


def _loss(candidate: Candidate, key: str) -> float:
    """The value with its sign turned where more is better; infinite where there is none."""
    value = candidate.value(key)
    if value is None or math.isnan(value):
        return math.inf
    return -value if key in UPWARD else value


def _is_faster(candidate: Candidate) -> bool:
    speedup = _measured(candidate, "speedup")
    return candidate.original or (speedup is not None and speedup.low > 1)


def _original(candidates: Sequence[Candidate]) -> Candidate:
    originals = [c for c in candidates if c.original]
    if len(originals) != 1:
        names = ", ".join(c.name for c in originals) or "none"
        raise UsageError(f"a front needs exactly one original among its candidates; marked as such: {names}")
    return originals[0]


def _check_objectives(original: Candidate, keys: Sequence[str]) -> None:
    if not keys or len(set(keys)) != len(keys):
        raise UsageError(f"objectives must be different metrics, at least one; got {list(keys)}")
    for key in keys:
        _need(original, key)


def _judge(candidates: Sequence[Candidate], judge: str) -> str:
    """Shares of different sets cannot be compared: validation is used only if every candidate has it."""
    if judge not in JUDGES:
        raise UsageError(f"judge={judge!r} is unknown; write one of {', '.join(JUDGES)}")
    return judge if all(_measured(c, judge) for c in candidates) else "accuracy"
