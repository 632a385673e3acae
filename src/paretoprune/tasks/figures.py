"""One pass over a set, and every figure that comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from paretoprune.core.data import take
from paretoprune.core.errors import DataError
from paretoprune.core.graph import Example
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Task
from paretoprune.tasks.calibration import Calibration
from paretoprune.tasks.confusion import MACRO, Confusion, Counts
from paretoprune.tasks.evaluate import Watch, evaluate
from paretoprune.tasks.losses import FirstScores, Losses, Values, generalisation_gap, recovery_ratio
from paretoprune.tasks.robustness import Robustness, Shifting

GAP_SAMPLES = 1000
"""At most so many training samples, and as many held-out ones, are compared for the generalisation gap."""
Predict = Callable[[Example], Any]


@dataclass(frozen=True)
class Answers:
    """What a network answered on a set.

    `figures` by key, "accuracy" first. `absent`: key -> why it could not be taken. `counts`: (classes, classes + 1), by
    label and prediction, or None. `first`: scores of the first GAP_SAMPLES samples. `losses`: of each sample, or None.
    """

    figures: Mapping[str, Measurement]
    absent: Mapping[str, str] = field(default_factory=dict)
    counts: Counts | None = None
    per_class: Mapping[str, list[int]] | None = None
    first: Values = field(default_factory=lambda: np.empty(0))
    losses: Values | None = None


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
    return Answers(figures, absent, confusion.counts, confusion.per_class(), first.scores, losses.per_sample)


def against_original(found: Answers, loss: Measurement | None, losses: Values | None) -> Answers:
    """`found` with its recovery ratio. `loss` and `losses` are the original's on the same set, where it has any."""
    mine = found.figures.get("loss")
    if mine is None or loss is None:
        return _without(found, "recovery_ratio", found.absent.get("loss") or "the original has no loss")
    if not (mine.value > 0 and loss.value > 0):
        return _without(found, "recovery_ratio", "a loss is not above 0")
    pairs = None if losses is None or found.losses is None else (losses, found.losses)
    return _with(found, "recovery_ratio", recovery_ratio(loss, mine, pairs))


def train_scores(predict: Predict, batches: Iterable[Any], task: Task, seed: int = 0) -> Values | str:
    """Scores of the first GAP_SAMPLES training samples, or why there are none. The caller's random state stays."""
    watch = FirstScores(GAP_SAMPLES)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            evaluate(predict, take(batches, GAP_SAMPLES), task, watch=[watch])
    except DataError as error:
        return f"the training set gives no scores: {error}"
    return watch.scores


def with_gap(found: Answers, train: Values | str) -> Answers:
    """`found` with its generalisation gap."""
    if isinstance(train, str):
        return _without(found, "generalisation_gap", train)
    return _with(found, "generalisation_gap", generalisation_gap(train, found.first))


def _with(found: Answers, key: str, figure: Measurement) -> Answers:
    figures = {**found.figures, key: figure}
    return replace(found, figures=figures)


def _without(found: Answers, key: str, why: str) -> Answers:
    return replace(found, absent={**found.absent, key: why})
