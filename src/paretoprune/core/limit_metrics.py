"""What a limit may be put on: metrics, their units and which way is better. One literal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from paretoprune.core.quality import SHIFTS

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
    quality: bool = False
    """Of the network's answers, judged on the search's validation set; what is not is a cost."""
    drop: bool = False
    """What was lost against the original, in place of the value."""
    falls: bool = True
    """A smaller network has no more of it. Power is not such a cost: a network may be done sooner and draw more."""

    @property
    def bounded(self) -> bool:
        """Whether the smallest network bounds what any candidate costs."""
        return self.falls and not self.quality

    @property
    def share(self) -> bool:
        """Given as a share of all samples: 0.9 or 90 %."""
        return "" in self.units

    @property
    def offered(self) -> str:
        """The units in words, for messages."""
        named = [unit for unit in self.units if unit]
        return ", ".join([*named, *self.relative])


SHARES = (TIMES, PERCENT_OF_ORIGINAL)


def _share(name: str, key: str, best: str) -> LimitMetric:
    """A share of samples that should be large."""
    return LimitMetric(
        key, "high", {"": 1.0, "%": 0.01}, SHARES, f"{best} reaches", f"{name} >= 90 %", top=1.0, quality=True
    )


def _drop(name: str, key: str, best: str) -> LimitMetric:
    """What such a share lost against the original."""
    return LimitMetric(
        key,
        "low",
        {"point": 0.01},
        (PERCENT_OF_ORIGINAL,),
        f"{best} loses",
        f"{name} <= 1 point",
        top=1.0,
        quality=True,
        drop=True,
    )


_SHARES = {
    "precision": ("macro_precision", "candidate with the best precision"),
    "recall": ("macro_recall", "candidate with the best recall"),
    "f1": ("macro_f1", "candidate with the best F1"),
}
_ROBUST = {how: f"candidate that stands {how} best" for how in SHIFTS}

METRICS: Mapping[str, LimitMetric] = {
    "accuracy": _share("accuracy", "accuracy", "most accurate candidate"),
    "accuracy drop": _drop("accuracy drop", "accuracy", "most accurate candidate"),
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
    "power": LimitMetric(
        "power_w",
        "low",
        {"W": 1.0, "mW": 1e-3},
        SHARES,
        "candidate with the least power draws",
        "power <= 2 W",
        falls=False,
    ),
    "frame rate": LimitMetric(
        "fps", "high", {"fps": 1.0}, SHARES, "candidate with the highest frame rate reaches", "frame rate >= 30 fps"
    ),
    "memory": LimitMetric(
        "memory_bytes", "low", BYTES, SHARES, "candidate with the least memory takes", "memory <= 100 MB"
    ),
    "macs": LimitMetric("macs", "low", COUNTS, SHARES, "candidate with the fewest MACs takes", "macs <= 20 M"),
    "parameters": LimitMetric(
        "parameters", "low", COUNTS, SHARES, "candidate with the fewest parameters has", "parameters <= 1 M"
    ),
    **{name: _share(name, key, best) for name, (key, best) in _SHARES.items()},
    **{f"{name} drop": _drop(f"{name} drop", key, best) for name, (key, best) in _SHARES.items()},
    "loss": LimitMetric(
        "loss", "low", {"nat": 1.0}, SHARES, "candidate with the least loss has", "loss <= 1.2x", quality=True
    ),
    "recovery ratio": LimitMetric(
        "recovery_ratio",
        "high",
        {"x": 1.0, "%": 0.01},
        (),
        "candidate that recovered best reaches",
        "recovery ratio >= 90 %",
        quality=True,
    ),
    "calibration error": LimitMetric(
        "calibration_error",
        "low",
        {"%": 0.01, "point": 0.01},
        SHARES,
        "best calibrated candidate has",
        "calibration error <= 5 %",
        top=1.0,
        quality=True,
    ),
    "generalisation gap": LimitMetric(
        "generalisation_gap",
        "low",
        {"point": 0.01},
        (),
        "candidate with the least gap has",
        "generalisation gap <= 5 points",
        top=1.0,
        quality=True,
    ),
    **{
        f"robust accuracy ({how})": _share(f"robust accuracy ({how})", f"robust_{how}", best)
        for how, best in _ROBUST.items()
    },
    **{
        f"robust accuracy drop ({how})": _drop(f"robust accuracy drop ({how})", f"robust_{how}", best)
        for how, best in _ROBUST.items()
    },
}
