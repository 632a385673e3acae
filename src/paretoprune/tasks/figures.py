"""One pass over a set, and every figure that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paretoprune.core.data import take
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Task
from paretoprune.tasks.calibration import Calibration
from paretoprune.tasks.confusion import MACRO, Confusion, Counts
from paretoprune.tasks.evaluate import Watch, evaluate
from paretoprune.tasks.losses import FirstScores, Losses, generalisation_gap, recovery_ratio
from paretoprune.tasks.robustness import Robustness, Shifting

GAP_SAMPLES = 1000
"""At most so many training samples, and as many held-out ones, are compared for the generalisation gap."""
Predict = Callable[[Example], Any]


@dataclass(frozen=True)
class Answers:
    """What a network answered on a set.

    `figures` by key, "accuracy" first. `absent`: key -> why it could not be taken. `counts`: (classes, classes + 1), by
    label and prediction, or None. `first`: scores of the first GAP_SAMPLES samples.
    """

    figures: Mapping[str, Measurement]
    absent: Mapping[str, str] = field(default_factory=dict)
    counts: Counts | None = None
    per_class: Mapping[str, list[int]] | None = None
    first: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


def answers(
    predict: Predict,
    batches: Iterable[Any],
    task: Task,
    *,
    shifting: Shifting | None = None,
    module: Callable[[], nn.Module] | None = None,
    cap: int | None = None,
) -> Answers:
    """Read the batches once. `shifting`: disturb the first of them too; attacks take their gradients from `module`."""
    confusion, calibration, losses, first = Confusion(), Calibration(), Losses(task), FirstScores(GAP_SAMPLES)
    robust = None if shifting is None else Robustness(predict, task, shifting, module)
    watch: list[Watch] = [confusion, calibration, losses, first, *([robust] if robust is not None else [])]
    figures = {"accuracy": evaluate(predict, batches, task, cap, watch)}
    for watcher in (confusion, losses, calibration, robust):
        figures |= {} if watcher is None else watcher.figures()
    whys = {
        **{f"macro_{name}": confusion.why for name in MACRO},
        "loss": losses.why,
        "calibration_error": calibration.why,
    }
    absent = {key: why for key, why in whys.items() if why}
    return Answers(figures, absent, confusion.counts, confusion.per_class(), first.scores)


def against_original(found: Answers, original: Mapping[str, Measurement] | None, prefix: str = "") -> Answers:
    """`found` with its recovery ratio. `original`: its figures, keys after `prefix`; None: this is the original."""
    mine = found.figures.get("loss")
    base = mine if original is None else original.get(f"{prefix}loss")
    ratio = Measurement.exact(1.0, "x") if original is None and mine is not None else recovery_ratio(base, mine)
    if ratio is not None:
        return _with(found, "recovery_ratio", ratio)
    why = found.absent.get("loss") or ("a loss is not above 0" if base is not None else "the original has no loss")
    return _without(found, "recovery_ratio", why)


def train_scores(predict: Predict, batches: Iterable[Any], task: Task, seed: int = 0) -> NDArray[np.float64] | str:
    """Scores of the first GAP_SAMPLES training samples, or why there are none. The caller's random state stays."""
    watch = FirstScores(GAP_SAMPLES)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            evaluate(predict, take(batches, GAP_SAMPLES), task, watch=[watch])
    except DataError as error:
        return f"the training set gives no scores: {error}"
    return watch.scores


def with_gap(found: Answers, train: NDArray[np.float64] | str) -> Answers:
    """`found` with its generalisation gap."""
    if isinstance(train, str):
        return _without(found, "generalisation_gap", train)
    return _with(found, "generalisation_gap", generalisation_gap(train, found.first))


def _with(found: Answers, key: str, figure: Measurement) -> Answers:
    figures = {**found.figures, key: figure}
    return replace(found, figures=figures)


def _without(found: Answers, key: str, why: str) -> Answers:
    return replace(found, absent={**found.absent, key: why})
