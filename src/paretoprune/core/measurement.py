"""A figure with its interval and the machine it was taken on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        return cls(**data)
