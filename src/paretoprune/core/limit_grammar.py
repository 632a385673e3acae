"""From the text of a limit to a value: `<metric> <op> <number> <unit>`."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paretoprune.core.errors import LimitError
from paretoprune.core.limit_metrics import METRICS, PERCENT_OF_ORIGINAL, TIMES, LimitMetric
from paretoprune.core.quality import plain_name

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
SPELLINGS = {"≤": "<=", "≥": ">=", "at most": "<=", "at least": ">="}
UNIT_SPELLINGS = {
    "points": "point",
    "percentage point": "point",
    "percentage points": "point",
    "percent": "%",
    "nats": "nat",
    "×": TIMES,
    "µs": "us",
    "μs": "us",
    "µJ": "uJ",
    "μJ": "uJ",
}
SHAPE = "'<metric> <= <number> <unit>', for instance 'latency <= 5 ms'"
_PARTS = re.compile(
    r"\s*(?P<metric>[^<>=≤≥]*?)\s*(?P<op><=|>=|<|>|≤|≥|\bat\s+most\b|\bat\s+least\b)\s*(?P<rest>.*)", re.S
)
_NUMBER = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan\b|inf(?:inity)?\b))", re.I)


@dataclass(frozen=True)
class Limit:
    """One limit, as it was written: `number` in `unit` ("" for an accuracy, an F1 … given as a share, 0 to 1)."""

    metric: str
    op: str
    number: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read one limit. Raises LimitError that repeats the text and says what to write instead."""
        parts = _PARTS.fullmatch(text) if isinstance(text, str) else None
        if parts is None:
            raise LimitError(f"limit {text!r} holds no comparison; write {SHAPE}")
        name = _metric(parts["metric"], text)
        op = re.sub(r"\s+", " ", parts["op"])
        number, unit = _quantity(parts["rest"], name, text)
        return cls(name, SPELLINGS.get(op, op), number, unit)

    @property
    def about(self) -> LimitMetric:
        return METRICS[self.metric]

    @property
    def relative(self) -> bool:
        """Whether the bound is a share of the original."""
        return self.unit in self.about.relative

    @property
    def scale(self) -> float:
        """One `unit` in the unit that the limit is judged in."""
        if self.relative:
            return 0.01 if self.unit == PERCENT_OF_ORIGINAL else 1.0
        return self.about.units[self.unit]

    @property
    def bound(self) -> float:
        """The bound in the measurement's unit, or as a share of the original if `relative`."""
        return self.number * self.scale

    @property
    def upper(self) -> bool:
        return self.op in ("<=", "<")

    def holds(self, value: float) -> bool:
        """Whether `value` (in the unit of `bound`) meets the limit. Rounding in the last digits is forgiven."""
        if math.isclose(value, self.bound, rel_tol=1e-9):
            value = self.bound
        return COMPARE[self.op](value, self.bound)

    def show(self, value: float, text: str | None = None) -> str:
        """`value` (in the unit of `bound`) in the limit's own unit. `text`: digits already chosen for it."""
        number = text if text is not None else f"{value / self.scale:.3g}"
        if self.unit == "point":
            return f"{number} {'point' if number == '1' else 'points'}"
        return f"{number}{'' if self.unit in (TIMES, '') else ' '}{self.unit}"

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.show(self.bound, _plain(self.number))}"


def _plain(number: float) -> str:
    return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _metric(given: str, text: str) -> str:
    name = plain_name(given)
    if name in METRICS:
        return name
    known = ", ".join(METRICS)
    if not name:
        raise LimitError(f"limit {text!r} names no metric; write {SHAPE}; metrics: {known}")
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise LimitError(f"limit {text!r}: unknown metric {given.strip()!r}; {hint}known metrics: {known}")


def _quantity(rest: str, name: str, text: str) -> tuple[float, str]:
    found = _NUMBER.match(rest)
    if found is None:
        raise LimitError(f"limit {text!r}: expected a number after the comparison, got {rest!r}; write {SHAPE}")
    number = float(found["number"])
    if not math.isfinite(number):
        raise LimitError(f"limit {text!r}: {name} is {found['number']}; give a finite number above 0")
    if number <= 0:
        raise LimitError(f"limit {text!r}: {name} is {found['number']}; it must be above 0")
    unit = _unit(rest[found.end() :].strip(), number, name, text)
    _check_range(number, unit, name, text)
    return number, unit


def _unit(given: str, number: float, name: str, text: str) -> str:
    metric = METRICS[name]
    unit = " ".join(given.split())
    unit = re.sub(r"^(%|percent) of (the )?original$", PERCENT_OF_ORIGINAL, unit)
    unit = UNIT_SPELLINGS.get(unit, unit)
    if unit == "" and unit in metric.units:
        return _check_share(number, name, text)
    if unit in metric.units or unit in metric.relative:
        return unit
    shown = _plain(number)
    if unit == "":
        raise LimitError(f"limit {text!r}: {shown} what? add a unit, one of {metric.offered}; e.g. {metric.example!r}")
    if unit == "%":
        points = f"'{shown} point' or " if "point" in metric.units else ""
        of = f"'{shown} % of original'" if metric.relative else metric.example
        raise LimitError(f"limit {text!r}: {shown} % of what? write {points}{of}")
    near = [u for u in metric.units if u.casefold() == unit.casefold()]
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise LimitError(f"limit {text!r}: {name} is not given in {unit!r}; {hint}units: {metric.offered}")


def _check_share(number: float, name: str, text: str) -> str:
    """A number without a unit is only ever a share from 0 to 1, and 1 itself could be 1 %."""
    if number >= 1:
        shown = _plain(number)
        percent = "100" if number == 1 else shown
        share = _plain(round(number / 100, 12))
        raise LimitError(f"limit {text!r}: is {name} {shown} a percentage or a share? write '{percent} %' or '{share}'")
    return ""


def _check_range(number: float, unit: str, name: str, text: str) -> None:
    metric = METRICS[name]
    shown = _plain(number)
    if metric.share and unit == "%" and number <= 1:
        raise LimitError(
            f"limit {text!r}: is {name} {shown} % a percentage or a share? "
            f"write '{shown}' for the share or '{_plain(round(number * 100, 12))} %'"
        )
    if metric.top is not None and unit in metric.units and number * metric.units[unit] > metric.top * (1 + 1e-9):
        raise LimitError(f"limit {text!r}: {name} cannot exceed {metric.top / metric.units[unit]:g} {unit}".rstrip())
