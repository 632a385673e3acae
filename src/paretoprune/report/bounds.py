"""The limits of a front as a report shows them: their texts, the lines they draw, what each row makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paretoprune.core.front import Front
from paretoprune.core.limit_grammar import Limit
from paretoprune.core.measurement import Measurement


@dataclass(frozen=True)
class LimitLine:
    """A limit as the user wrote it; `bound` is its absolute value in the unit of the measurement `metric`.

    Without a bound (nothing of that kind was measured on the original) no line is drawn.
    """

    text: str
    metric: str = ""
    bound: float | None = None


@dataclass(frozen=True)
class LimitFacts:
    """`remarks` by row name: each limit that is missed, or met only by an estimate.

    `on_validation`: accuracy limits were judged on the validation share, while pictures show the test share.
    """

    lines: tuple[LimitLine, ...] = ()
    remarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    on_validation: bool = False


def limit_facts(front: Front) -> LimitFacts:
    original = front.original.measurements
    checked = {c.name: front.limits.check(c.measurements, original, front.judge) for c in front.candidates}
    remarks = {name: tuple(map(str, found)) for name, found in checked.items() if found}
    lines = tuple(limit_line(limit, original) for limit in front.limits)
    on_validation = front.judge == "validation" and any(line.metric == "accuracy" for line in lines)
    return LimitFacts(lines, remarks, on_validation)


def limit_line(limit: Limit, original: Mapping[str, Measurement]) -> LimitLine:
    """Where the limit stands in absolute terms. A speedup is drawn as the latency that it asks for."""
    metric = "latency_ms" if limit.metric == "speedup" else limit.about.key
    base = original.get(metric)
    if limit.metric != "speedup" and not limit.about.drop and not limit.relative:
        return LimitLine(str(limit), metric, limit.bound)
    if base is None:
        return LimitLine(str(limit), metric)
    if limit.metric == "speedup":
        return LimitLine(str(limit), metric, base.value / limit.bound if limit.bound > 0 else None)
    if limit.about.drop:
        return LimitLine(str(limit), metric, base.value - limit.bound * (base.value if limit.relative else 1.0))
    return LimitLine(str(limit), metric, base.value * limit.bound)
