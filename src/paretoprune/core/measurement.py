"""A figure with its interval and the machine it was taken on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Status = Literal["measured", "estimated"]


@dataclass(frozen=True)
class Measurement:
    """`value` lies in [`low`, `high`] (95 % interval); `runs` samples; `unit` as in the field that holds it.

    `target` is the fingerprint (a short hash) of the runtime and machine; `note` says how an estimate was made.
    """

    value: float
    low: float
    high: float
    runs: int
    unit: str
    status: Status = "measured"
    target: str = ""
    note: str = ""

    @classmethod
    def exact(cls, value: float, unit: str, target: str = "", note: str = "") -> Measurement:
        """A count that has no noise: bytes of a file, MACs of a graph."""
        return cls(value, value, value, 1, unit, "measured", target, note)

    def joined(self, again: Measurement) -> Measurement:
        """Two takes of one figure: the value of the steadier one, in an interval that holds both values."""
        best, other = sorted((self, again), key=lambda m: (m.high - m.low) / abs(m.value) if m.value else math.inf)
        low, high = min(best.low, other.value), max(best.high, other.value)
        return replace(best, low=low, high=high, runs=self.runs + again.runs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        return cls(**data)
