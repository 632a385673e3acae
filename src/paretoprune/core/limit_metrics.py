"""What a limit may be put on: metrics, their units and which way is better. One literal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}

TIMES = "x"
PERCENT_OF_ORIGINAL = "% of original"


@dataclass(frozen=True)
class LimitMetric:
    """A metric that a limit may name.

    `key` is the measurement it is judged on. `units` gives the size of each unit in the measurement's own unit
    (ms, mJ, bytes, counts, share 0 to 1). `relative` lists the units that mean a share of the original.
    `extreme` reads "the <extreme> <value>".
    """

    key: str
    better: Literal["low", "high"]
    units: Mapping[str, float]
    relative: tuple[str, ...]
    extreme: str
    example: str
    top: float | None = None
    """Largest value that means anything, in the measurement's own unit."""

    @property
    def offered(self) -> str:
        """The units in words, for messages."""
        named = [unit for unit in self.units if unit]
        return ", ".join([*named, *self.relative])


SHARES = (TIMES, PERCENT_OF_ORIGINAL)

METRICS: Mapping[str, LimitMetric] = {
    "accuracy": LimitMetric(
        "accuracy",
        "high",
        {"": 1.0, "%": 0.01},
        SHARES,
        "most accurate candidate reaches",
        "accuracy >= 90 %",
        top=1.0,
    ),
    "accuracy drop": LimitMetric(
        "accuracy",
        "low",
        {"point": 0.01},
        (PERCENT_OF_ORIGINAL,),
        "most accurate candidate loses",
        "accuracy drop <= 1 point",
        top=1.0,
    ),
    "latency": LimitMetric(
        "latency_ms",
        "low",
        {"ms": 1.0, "s": 1e3, "us": 1e-3},
        SHARES,
        "fastest candidate takes",
        "latency <= 5 ms",
    ),
    "speedup": LimitMetric("speedup", "high", {"x": 1.0}, (), "fastest candidate reaches", "speedup >= 2x"),
    "size": LimitMetric("size_bytes", "low", BYTES, SHARES, "smallest candidate takes", "size <= 1 MB"),
    "energy": LimitMetric(
        "energy_mj",
        "low",
        {"mJ": 1.0, "J": 1e3, "uJ": 1e-3},
        SHARES,
        "thriftiest candidate takes",
        "energy <= 20 mJ",
    ),
    "memory": LimitMetric(
        "memory_bytes", "low", BYTES, SHARES, "candidate with the least memory takes", "memory <= 100 MB"
    ),
    "macs": LimitMetric("macs", "low", COUNTS, SHARES, "candidate with the fewest MACs takes", "macs <= 20 M"),
    "parameters": LimitMetric(
        "parameters", "low", COUNTS, SHARES, "candidate with the fewest parameters has", "parameters <= 1 M"
    ),
}
