"""The limits that matter to the user: read, checked against each other and against measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Literal

from paretoprune.core.candidate import Candidate
from paretoprune.core.errors import LimitError, UsageError
from paretoprune.core.limit_grammar import Limit
from paretoprune.core.measurement import Measurement
from paretoprune.core.quality import judged_key

Measured = Mapping[str, Measurement]
JUDGES = ("validation", "accuracy")


@dataclass(frozen=True)
class Violation:
    """What `Limits.check` found about one limit.

    `kind` is "exceeded" (or fallen short of), "missing" (never measured) or "estimated": within the bound, but the
    figure is an estimate. Only the first two are `broken`. `value` is in the unit of `limit.bound`.
    """

    limit: Limit
    kind: Literal["exceeded", "missing", "estimated"]
    value: float | None
    on_estimate: bool = False

    @property
    def broken(self) -> bool:
        return self.kind != "estimated"

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.limit}: {self.limit.metric} was not measured"
        label = " (estimated, not measured)" if self.on_estimate else ""
        return f"{self.limit}: {self.limit.show(self.value)}{label}"


@dataclass(frozen=True)
class Limits:
    """Limits that all must hold. A value is judged at its point estimate; the interval stands beside it in reports.

    Every method takes `judge`: with "validation", accuracy (and every other figure of `core.quality`) is that of the
    search's validation set where both the candidate and the original have one; with "accuracy", that of the test set.
    """

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Limits:
        """Read limits such as "latency <= 5 ms". Raises LimitError; see `limit_grammar` for what can be written."""
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise LimitError(f"limits must be a list of texts, got {texts!r}; write [{str(texts)!r}]")
        limits = tuple(dict.fromkeys(Limit.parse(text) for text in texts))
        _refuse_contradictions(limits)
        for limit in limits:
            _refuse_odd_direction(limit)
        return cls(limits)

    def __str__(self) -> str:
        return ", ".join(str(limit) for limit in self.limits)

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def check(self, measurements: Measured, original: Measured, judge: str = "validation") -> list[Violation]:
        """What is broken, and what holds only by an estimate (`Violation.broken` is False there)."""
        found = []
        for limit in self.limits:
            value, on_estimate = _value(limit, measurements, original, judge)
            if value is None:
                found.append(Violation(limit, "missing", None))
            elif not limit.holds(value):
                found.append(Violation(limit, "exceeded", value, on_estimate))
            elif on_estimate:
                found.append(Violation(limit, "estimated", value, on_estimate))
        return found

    def met(self, measurements: Measured, original: Measured, judge: str = "validation") -> bool:
        """Whether nothing is broken. What holds only by an estimate counts as met: show what `check` says of it."""
        return not any(v.broken for v in self.check(measurements, original, judge))

    def already_met_by(self, original: Measured, judge: str = "validation") -> list[str]:
        """A sentence for every limit on cost that the original meets as it is (limits on the answers are left out)."""
        said = []
        for limit in self.limits:
            value, _ = _value(limit, original, original, judge)
            if not limit.about.quality and value is not None and limit.holds(value):
                said.append(f"{limit} is already met by the original ({limit.show(value)})")
        return said

    def unreachable(self, candidates: Sequence[Candidate], original: Measured, judge: str = "validation") -> str | None:
        """Why no candidate meets the limits, with the nearest value that one reaches; None if one meets them all."""
        if not self.limits or any(self.met(c.measurements, original, judge) for c in candidates):
            return None
        if not candidates:
            return f"no candidate was measured, so nothing can meet {self}"
        alone = [_alone(limit, candidates, original, judge) for limit in self.limits]
        messages = [message for message in alone if message]
        return "; ".join(messages) or self._together(candidates, original, judge)

    def _together(self, candidates: Sequence[Candidate], original: Measured, judge: str) -> str:
        """Each limit can be met, but not all by one candidate: name the one that breaks the fewest."""
        failing = [(c.name, [v for v in self.check(c.measurements, original, judge) if v.broken]) for c in candidates]
        name, broken = min(failing, key=lambda f: (len(f[1]), sum(_excess(v) for v in f[1])))
        parts = []
        for violation in broken:
            text = f"{violation.limit} fails"
            if violation.value is not None:
                text += f" ({violation.limit.show(violation.value)}); {_remedy(violation.limit, violation.value)}"
            parts.append(text)
        return f"{self} cannot be met together; nearest is {name}: {'; '.join(parts)}"


def _refuse_contradictions(limits: Sequence[Limit]) -> None:
    for a, b in itertools.combinations(limits, 2):
        if a.metric != b.metric or a.relative != b.relative:
            continue
        if a.op == b.op and math.isclose(a.bound, b.bound, rel_tol=1e-9):
            continue
        if a.upper == b.upper:
            raise LimitError(f"limits {str(a)!r} and {str(b)!r} limit {a.metric} twice; keep one of them")
        below, above = (a, b) if a.upper else (b, a)
        if not (below.holds(above.bound) and above.holds(below.bound)):
            raise LimitError(f"limits {str(a)!r} and {str(b)!r} contradict each other; drop or change one of them")


def _refuse_odd_direction(limit: Limit) -> None:
    if limit.upper == (limit.about.better == "low"):
        return
    worse = {"accuracy": "a less accurate", "latency_ms": "a slower", "speedup": "a slower"}
    kind = worse.get(limit.about.key, "a worse" if limit.about.quality else "a costlier")
    op = ">=" if limit.upper else "<="
    turned = Limit(limit.metric, op, limit.number, limit.unit)
    raise LimitError(f"limit {str(limit)!r} asks for {kind} network; did you mean {str(turned)!r}?")


def _value(limit: Limit, measured: Measured, original: Measured, judge: str) -> tuple[float | None, bool]:
    """(value in the unit of `limit.bound`, whether an estimate went into it); None where nothing was measured."""
    if judge not in JUDGES:
        raise UsageError(f"judge={judge!r} is unknown; write one of {', '.join(JUDGES)}")
    key, drop = judged_key(limit.about.key, judge, measured, original), limit.about.drop
    if limit.metric == "speedup" or (limit.metric == "latency" and limit.relative):
        return _speed(limit, measured, original)
    taken = measured.get(key)
    if taken is None:
        return None, False
    if not limit.relative and not drop:
        return taken.value, taken.status == "estimated"
    base = original.get(key)
    if base is None or (limit.relative and not base.value > 0):
        return None, False
    value = base.value - taken.value if drop else taken.value
    return (value / base.value if limit.relative else value), "estimated" in (taken.status, base.status)


def _speed(limit: Limit, measured: Measured, original: Measured) -> tuple[float | None, bool]:
    """Speed against the original: the paired measurement where there is one, else the ratio of the latencies."""
    paired, taken, base = measured.get("speedup"), measured.get("latency_ms"), original.get("latency_ms")
    if paired is not None:
        speedup, on_estimate = paired.value, paired.status == "estimated"
    elif taken is not None and base is not None and taken.value > 0:
        speedup, on_estimate = base.value / taken.value, "estimated" in (taken.status, base.status)
    else:
        return None, False
    if limit.metric == "speedup":
        return speedup, on_estimate
    return (1 / speedup if speedup > 0 else math.inf), on_estimate


def _alone(limit: Limit, candidates: Sequence[Candidate], original: Measured, judge: str) -> str | None:
    """Why no candidate meets this one limit, or None if one does."""
    taken = [_value(limit, c.measurements, original, judge)[0] for c in candidates]
    values = [v for v in taken if v is not None and math.isfinite(v)]
    if not values:
        return f"{limit} cannot be judged: {limit.metric} was not measured for any candidate; drop the limit"
    best = min(values) if limit.upper else max(values)
    if limit.holds(best):
        return None
    return f"{limit} cannot be met: the {limit.about.extreme} {limit.show(best)}; {_remedy(limit, best)}"


def _remedy(limit: Limit, value: float) -> str:
    """Three digits, rounded so that the value meets the limit that is proposed."""
    exact = Decimal(f"{value / limit.scale:.10g}")
    step = Decimal(1).scaleb(exact.adjusted() - 2) if exact else Decimal("0.01")
    near = exact.quantize(step, rounding=ROUND_CEILING if limit.upper else ROUND_FLOOR)
    if near == exact and limit.op in ("<", ">"):
        near += step if limit.upper else -step
    shown = limit.show(value, f"{near.normalize():f}")
    return f"raise the limit to at least {shown}" if limit.upper else f"lower the limit to at most {shown}"


def _excess(violation: Violation) -> float:
    """By what factor a limit is missed, for ranking only."""
    value, bound = violation.value, violation.limit.bound
    if value is None or not math.isfinite(value):
        return math.inf
    return abs(value - bound) / bound
