"""Every knob of a search, with its default. The recipe's keys and `pp.search`'s keywords are these."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paretoprune.core.errors import UsageError
from paretoprune.core.front import metric_key
from paretoprune.core.limits import Limits
from paretoprune.core.plan import CHEAPER
from paretoprune.core.quality import KEYS, quality_of

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
LEAST_SQUARES = "least-squares"
_LISTS = ("ignore", "precisions", "objectives", "metrics", "activations", "zeros")
_COUNTS = ("tune_threads", "tune_batch")


@dataclass(frozen=True)
class Settings:
    """One search. Everything here decides the result, so a run folder is bound to it.

    `budget_s`: seconds of wall time that the search plans with. `candidates`: networks carried out and measured.
    `steps`: distillation steps per candidate, None for as many as the budget has room for, 0 for none. `nested`: all
    candidates are distilled together, as one nested network, with the forwards that they would take alone.
    `criterion`: "least-squares" (order of elimination by reconstruction error) or a criterion's name. `score_on`:
    "int8" has scores and error curves taken of the network as the target's int8 file rounds it. `floor`,
    `keep_ratio`: least positions, and least share of them, that every axis keeps. `align`: kept widths are multiples
    of it; "auto" reads the target's own step. `evaluations`: proposals that a searcher may try on the proxy, None for
    its default. `watts_per_core`: what the energy estimate takes a busy core to draw, None for the documented default.
    `metrics`: figures to take beside those that cost nothing, e.g. "robust accuracy (fgsm)"; what a limit or an
    objective names is taken anyway. `robust_samples`: samples of a set that are disturbed for them; `attack_eps`:
    largest change by an attack, as a share of the input's range. `activations`: cheaper ones, e.g. "relu", that half of
    the candidates are carried out with in place of the network's own, and the whole network too. `tune_threads`,
    `tune_batch`: every file competes at these threads and batch sizes too, with time and energy of one sample; none for
    the search's own alone. `zeros`: what every layer's weight may hold, patterns and shares such as "16x1@0.8", which
    compete with the widths; None for the usual ones where the target gains from zeros, else none. `depth`:
    residual blocks may go as a whole, too.
    """

    limits: tuple[str, ...] = ()
    budget_s: float = 1200.0
    searcher: str = "knapsack"
    candidates: int = 12
    evaluations: int | None = None
    steps: int | None = None
    learning_rate: float = 0.02
    nested: bool = False
    criterion: str = LEAST_SQUARES
    score_on: Literal["fp32", "int8"] = "fp32"
    axes: Literal["inner", "all"] = "inner"
    ignore: tuple[str, ...] = ()
    align: int | Literal["auto"] = "auto"
    floor: int = 1
    keep_ratio: float = 0.0
    precisions: tuple[str, ...] = ("fp32", "int8")
    objectives: tuple[str, ...] = ("accuracy", "latency_ms")
    calibration_samples: int = 512
    max_batches: int | None = None
    threads: int = 1
    watts_per_core: float | None = None
    seed: int = 0
    metrics: tuple[str, ...] = ()
    robust_samples: int = 256
    attack_eps: float = 8 / 255
    activations: tuple[str, ...] = ()
    tune_threads: tuple[int, ...] = ()
    tune_batch: tuple[int, ...] = ()
    zeros: tuple[str, ...] | None = None
    depth: bool = False

    def __post_init__(self) -> None:
        for name in ("candidates", "floor", "threads", "calibration_samples", "robust_samples"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        for name in ("evaluations", "max_batches"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.steps is not None:
            _at_least("steps", self.steps, 0)
        if self.align != "auto":
            _at_least("align", self.align, 1)
        for name in ("nested", "depth"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}: give true or false")
        if self.nested and self.depth:
            raise UsageError(
                "nested=True trains one network with all its blocks, and depth=True drops some: leave one out"
            )
        if self.score_on not in ("fp32", "int8"):
            raise UsageError(f"score_on={self.score_on!r}: give 'fp32' or 'int8'")
        if self.axes not in ("inner", "all"):
            raise UsageError(f"axes={self.axes!r}: give 'inner' or 'all'")
        for name in ("budget_s", "learning_rate", "watts_per_core", "attack_eps"):
            value = getattr(self, name)
            if value is None and name == "watts_per_core":
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise UsageError(f"{name}={value!r}: give a number above 0")
        if not isinstance(self.keep_ratio, (int, float)) or not 0 <= self.keep_ratio < 1:
            raise UsageError(f"keep_ratio={self.keep_ratio!r}: give a share from 0 to below 1")
        if not self.precisions or self.precisions[0] != "fp32":
            raise UsageError(
                f"precisions={list(self.precisions)}: 'fp32' comes first, it is what others are compared with"
            )
        for name in self.objectives:
            metric_key(name)
        if not self.objectives or len({metric_key(name) for name in self.objectives}) != len(self.objectives):
            raise UsageError(f"objectives={list(self.objectives)}: give different metrics, at least one")
        for name in self.activations:
            if name not in CHEAPER:
                raise UsageError(f"activations={list(self.activations)}: {name!r} is not one of {', '.join(CHEAPER)}")
        if self.activations and self.nested:
            raise UsageError("nested=True shares one network's weights, whose activations are the same: leave one out")
        for name in self.metrics:
            quality_of(name)
        for name in _COUNTS:
            given = getattr(self, name)
            for value in given:
                _at_least(name, value, 1)
            if len(set(given)) != len(given):
                raise UsageError(f"{name}={list(given)}: give different numbers")
        Limits.parse(self.limits)

    @property
    def asked(self) -> tuple[str, ...]:
        """Keys of the figures of quality that were asked for, by `metrics`, a limit or an objective."""
        named = [limit.about.key for limit in self.parsed_limits] + [metric_key(name) for name in self.objectives]
        return tuple(
            dict.fromkeys([*(quality_of(name).key for name in self.metrics), *(k for k in named if k in KEYS)])
        )

    @property
    def parsed_limits(self) -> Limits:
        return Limits.parse(self.limits)


def settings_of(limits: Sequence[str] = (), budget: str = "20 min", **options: Any) -> Settings:
    """Settings from a call's keywords. Raises UsageError for an unknown one."""
    known = Settings.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    lists: dict[str, tuple[Any, ...]] = {
        k: _texts(k, v) for k, v in options.items() if k in _LISTS and not (k == "zeros" and v is None)
    }
    lists |= {k: _numbers(k, v) for k, v in options.items() if k in _COUNTS}
    return Settings(limits=_texts("limits", limits), budget_s=seconds(budget), **{**options, **lists})


def seconds(budget: str) -> float:
    """ "20 min", "90 s", "1.5 h" in seconds. Raises UsageError for a number without a unit."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]+)\s*", budget) if isinstance(budget, str) else None
    if match is None or match[2] not in _SECONDS:
        raise UsageError(f"budget={budget!r}: give a time with its unit, such as '20 min', '90 s' or '2 h'")
    try:
        value = float(match[1]) * _SECONDS[match[2]]
    except ValueError as error:
        raise UsageError(f"budget={budget!r}: '{match[1]}' is no number") from error
    if value <= 0:
        raise UsageError(f"budget={budget!r}: must be above 0")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Several texts; a single one may stand alone."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) for t in texts):
        raise UsageError(f"{name}={value!r}: give a list of texts")
    return tuple(texts)


def _numbers(name: str, value: Any) -> tuple[Any, ...]:
    """Several numbers; a single one may stand alone."""
    numbers = (value,) if isinstance(value, int) else value
    if not isinstance(numbers, (list, tuple)):
        raise UsageError(f"{name}={value!r}: give a list of whole numbers")
    return tuple(numbers)


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}={value!r}: give a whole number of at least {least}")
