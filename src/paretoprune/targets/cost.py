"""What a layer costs at a width, measured on the target."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paretoprune.core.errors import FileError, TargetError, UsageError
from paretoprune.core.layers import LayerSpec
from paretoprune.core.precision import carrier
from paretoprune.core.protocols import Target
from paretoprune.targets import cache
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.latency import Timer, Work
from paretoprune.targets.layers import layer_model
from paretoprune.targets.traits import timing_for

COST_SCHEMA = 1
BUDGET_MS = 40.0
"""CPU time spent on one layer, building and loading not counted; a slow layer gets at least three rounds."""

SAMPLE_MS = 0.5
MIN_ROUNDS = 3
SMALLEST_SHARE = 0.02
"""A layer is never free: where noise swallows the second copy, this share of the whole is taken."""


class CostTable:
    """Milliseconds by layer and precision. Measures what it does not know yet.

    Costs add up: each is what one more such layer costs inside a network, not a model of one layer with its edges.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.fingerprint = fingerprint_id(target.fingerprint())
        self.steps: dict[str, int] = {}
        """By precision: the step of widths that `align.staircase` read off the target."""
        self._known: dict[tuple[LayerSpec, str], float] = {}
        self._kept = 0

    def __len__(self) -> int:
        return len(self._known)

    def cost_ms(self, spec: LayerSpec, precision: str = "fp32") -> float:
        key = (spec, precision)
        if key not in self._known:
            self._known[key] = self.take_ms(spec, precision)
        return self._known[key]

    def take_ms(self, spec: LayerSpec, precision: str = "fp32") -> float:
        """Measured now, whatever is known."""
        return measure_layer(self.target, spec, precision)

    def to_json(self) -> dict[str, Any]:
        costs = [{"spec": spec.to_json(), "precision": p, "ms": ms} for (spec, p), ms in self._known.items()]
        return {"schema": COST_SCHEMA, "target": self.fingerprint, "costs": costs, "steps": dict(self.steps)}

    @classmethod
    def cached(cls, target: Target) -> CostTable:
        """With what was measured on this very target before, in any run; see `targets/cache.py`."""
        table = cls(target)
        with contextlib.suppress(FileError):
            table = cls.from_json(cache.read(table._file) or {}, target)
        table._kept = len(table) + len(table.steps)
        return table

    def keep(self) -> None:
        """Put what is new into the cache, beside what other processes have put there."""
        if len(self) + len(self.steps) > self._kept:
            there = CostTable.cached(self.target)
            self._known, self.steps = {**there._known, **self._known}, {**self.steps, **there.steps}
            self._kept = len(self) + len(self.steps)
            cache.write(self._file, self.to_json())

    @property
    def _file(self) -> str:
        return f"costs-{self.fingerprint}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], target: Target) -> CostTable:
        """Raises FileError for a table of another machine or a newer schema."""
        table = cls(target)
        schema, mark = data.get("schema"), data.get("target")
        if not isinstance(schema, int) or schema > COST_SCHEMA:
            raise FileError(
                f"the cost table has schema {schema!r}; this version reads up to {COST_SCHEMA}: upgrade paretoprune"
            )
        if mark != table.fingerprint:
            raise FileError(f"the cost table was measured on {mark}, this target is {table.fingerprint}; measure again")
        try:
            for row in data["costs"]:
                table._known[LayerSpec.from_json(row["spec"]), str(row["precision"])] = _positive(row["ms"])
            table.steps = {str(p): int(_positive(step)) for p, step in data.get("steps", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise FileError(f"the cost table is damaged ({error!r}): measure again") from error
        return table


def _positive(ms: Any) -> float:
    if not (math.isfinite(float(ms)) and float(ms) > 0):
        raise ValueError(f"{ms} ms")
    return float(ms)


def conv_cost(table: CostTable, spec: LayerSpec, widths: Iterable[int], precision: str = "fp32") -> dict[int, float]:
    """Milliseconds of `spec` with each number of outputs."""
    return {width: table.cost_ms(replace(spec, outputs=width), precision) for width in widths}


def measure_layer(target: Target, spec: LayerSpec, precision: str = "fp32") -> float:
    """Milliseconds that one more such layer adds to a network on `target`: two copies against one, interleaved."""
    precision = carrier(precision)
    if precision not in target.precisions:
        raise UsageError(
            f"precision {precision!r} is not offered by {target.name}; use {' or '.join(target.precisions)}"
        )
    timing = timing_for(target, min_sample_ms=SAMPLE_MS)
    with tempfile.TemporaryDirectory(prefix="paretoprune-") as folder:
        timers = [Timer(_work(target, spec, copies, precision, Path(folder)), timing) for copies in (1, 2)]
    return _difference(timers, 0 if timing.basis == "cpu" else 1, f"{spec}")


def _work(target: Target, spec: LayerSpec, copies: int, precision: str, folder: Path) -> Work:
    own = getattr(target, "layer", None)
    if own is not None:
        work: Work = own(spec, copies, precision)
        return work
    path = folder / f"layer{copies}.onnx"
    path.write_bytes(layer_model(spec, copies, precision).SerializeToString())
    runner, feed = target.load(path), {"x": spec.example()}
    return lambda: runner(feed)


def _difference(timers: list[Timer], column: int, what: str) -> float:
    rounds: list[list[float]] = []
    spent_ms = 0.0
    while len(rounds) < MIN_ROUNDS or spent_ms < BUDGET_MS:
        order = timers if len(rounds) % 2 else timers[::-1]
        row = {id(timer): timer()[column] for timer in order}
        rounds.append([row[id(timer)] for timer in timers])
        spent_ms += sum(max(value * timer.calls, 0.01) for value, timer in zip(rounds[-1], timers, strict=True))
    one, two = np.quantile(np.array(rounds), 0.2, axis=0)
    if not one > 0:
        raise TargetError(f"{what}: the clock stood still while it was timed; measure again")
    return float(max(two - one, SMALLEST_SHARE * one))
