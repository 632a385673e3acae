"""A plan that was carried out, exported and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretoprune.core.errors import UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.plan import Plan
from paretoprune.core.why import Why

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Candidate:
    """One exported network.

    `measurements` is keyed "accuracy" (share of the test set), "validation" (share of the search's validation set),
    the figures of `core.quality` by their keys, and for the validation set as "validation_<key>";
    "latency_ms", "energy_mj" (where a meter was read less the idle power, with it in "energy_gross_mj"), "size_bytes",
    "memory_bytes", "macs", "speedup" (original fp32 latency over this one, paired in one run), and what follows from
    these (`core.derived`: "fps", "power_w" …). `provenance` says how it came about: seed, recovery, seconds per stage.
    `threads`, `batch`: at which it was timed; time and energy are those of one sample.
    """

    name: str
    plan: Plan
    precision: str
    path: Path
    measurements: Mapping[str, Measurement]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    original: bool = False
    on_front: bool = False
    meets_limits: bool = True
    loader: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)
    explainer: Callable[[], Why] | None = field(default=None, repr=False, compare=False)
    absent: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Figures that could not be taken, and why: {"macro_f1": "the labels are not classes: …"}."""
    threads: int = 1
    batch: int = 1

    def value(self, metric: str) -> float | None:
        """The value of a measurement, or None where it was not taken (None is not zero)."""
        found = self.measurements.get(metric)
        return None if found is None else found.value

    def _need(self, metric: str) -> float:
        value = self.value(metric)
        if value is None:
            raise UsageError(f"{self.name}: no {metric} was measured; there are {', '.join(sorted(self.measurements))}")
        return value

    @property
    def accuracy(self) -> float:
        """Share of the test set, 0 to 1."""
        return self._need("accuracy")

    @property
    def latency_ms(self) -> float:
        return self._need("latency_ms")

    @property
    def energy_mj(self) -> float:
        return self._need("energy_mj")

    @property
    def size_bytes(self) -> int:
        return int(self._need("size_bytes"))

    @property
    def macs(self) -> int:
        return int(self._need("macs"))

    def load(self) -> nn.Module:
        """The recovered network as a module (fp32 weights, before export)."""
        if self.loader is None:
            raise UsageError(f"{self.name}: this record has no weights beside it; load it through paretoprune.search")
        return self.loader()

    def why(self) -> Why:
        """What was cut, what that does alone, which classes lost most, what recovered it; print it, or `to_json()`."""
        if self.explainer is None:
            raise UsageError(f"{self.name}: this record has no run folder beside it; read the front from its run")
        return self.explainer()
